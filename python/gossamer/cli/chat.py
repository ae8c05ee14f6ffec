"""`gossamer chat`: a conversation on the terminal, or over piped lines."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..generation.sampling_options import CHAT
from .options import (
    add_adapter_option,
    add_device_option,
    add_draft_options,
    add_engine_options,
    add_model_option,
    add_system_option,
    chosen_drafts,
    open_model,
)
from .sampling_arguments import add_prompt_cache_option, add_sampling_options, chosen_sampling

if TYPE_CHECKING:
    from ..generation.conversation import Conversation

SUMMARY = "chat with a model; it remembers the conversation"

BLOCK = '"""'
"""Opens and closes a message of several lines."""

HELP = """\
/reset  forget the conversation
/stats  tokens, times, bandwidth and sampling of the last answer
/help   this list
/quit   leave, as Ctrl-D does
A line that ends with \\ goes on with the next one; lines between two of \"\"\" are one message.
Ctrl-C stops an answer; what came of it stays in the conversation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = (
        "A line is a message; one that ends with \\ goes on with the next, and lines between two of "
        f"{BLOCK} are one. Commands: /reset, /stats, /help, /quit. Ctrl-C stops one answer."
    )
    add_model_option(parser)
    add_system_option(parser)
    add_sampling_options(parser, CHAT)
    parser.add_argument(
        "--stats", action="store_true", help="tell tokens, times, bandwidth and sampling on stderr after every answer"
    )
    add_prompt_cache_option(
        parser, "begin with the keys and values of this file, as far as the chat is the same, and keep them there"
    )
    add_adapter_option(parser)
    add_draft_options(parser)
    add_device_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Chats until the input ends, and returns the exit code."""
    model = open_model(args, args.model, args.threads)
    if not model.tokenizer.has_chat_template:
        raise GossamerError(f"{args.model} has no chat template; `gossamer generate --raw` continues plain text")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # line editing, where Python has it
            import readline  # noqa: F401
        print(f"{args.model}: /help lists the commands, Ctrl-D leaves", file=sys.stderr)
    options = {**chosen_sampling(args, model, CHAT), "draft": chosen_drafts(args, model)}
    conversation = model.conversation(args.system, prompt_cache=args.prompt_cache)
    try:
        while _turn(conversation, terminal, args.stats, options):
            pass
    finally:
        conversation.keep()
    return 0


def _turn(conversation: Conversation, terminal: bool, stats: bool, options: dict[str, Any]) -> bool:
    """Reads and handles one line; returns whether to go on. On a terminal it outlives errors and Ctrl-C."""
    try:
        line = _read(terminal)
        if line is None or line in ("/quit", "/exit"):
            return False
        if line:
            _handle(conversation, line, stats, options)
    except GossamerError as error:
        if not terminal:
            raise
        print(f"gossamer: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        if not terminal:
            raise
        print(flush=True)
    return True


def _read(terminal: bool) -> str | None:
    """The next message or command, which may have several lines; None at the end of the input."""
    line = _line(terminal, "> ")
    if line is None:
        return None
    lines: list[str] = []
    if line.lstrip().startswith(BLOCK):
        line = line.lstrip().removeprefix(BLOCK)
        while line is not None and not line.rstrip().endswith(BLOCK):
            lines.append(line)
            line = _line(terminal, "... ")
        lines.append("" if line is None else line.rstrip().removesuffix(BLOCK))
    else:
        while line is not None and line.endswith("\\"):
            lines.append(line.removesuffix("\\"))
            line = _line(terminal, "... ")
        lines.append(line or "")
    return "\n".join(lines).strip()


def _line(terminal: bool, prompt: str) -> str | None:
    """The next line; None at the end of the input."""
    try:
        return input(prompt) if terminal else input()
    except EOFError:
        if terminal:
            print()
        return None
    except UnicodeDecodeError as error:
        raise GossamerError(f"standard input is not {error.encoding} text: {error.reason}") from None


def _handle(conversation: Conversation, line: str, stats: bool, options: dict[str, Any]) -> None:
    """Obeys one command or answers one message."""
    if line == "/reset":
        conversation.reset()
        print("the conversation is forgotten", file=sys.stderr)
    elif line == "/stats":
        last = conversation.model.last_stats
        print(last.text() if last else "no answer yet", file=sys.stderr)
    elif line == "/help":
        print(HELP, file=sys.stderr)
    elif line.startswith("/"):
        print(f"unknown command {line.split(maxsplit=1)[0]}; /help lists them", file=sys.stderr)
    else:
        with contextlib.closing(conversation.say(line, **options)) as pieces:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        print(flush=True)
        if stats and conversation.model.last_stats:
            print(conversation.model.last_stats.text(), file=sys.stderr)
