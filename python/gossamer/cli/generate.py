"""`gossamer generate`: text for one prompt, streamed to stdout."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from typing import Any

from ..generation.completion import Completion
from ..generation.sampling_options import GENERATE
from .interrupt import Interrupt
from .options import (
    add_adapter_option,
    add_device_option,
    add_draft_options,
    add_engine_options,
    add_model_option,
    add_system_option,
    chosen_drafts,
    integer,
    open_model,
)
from .output import print_json
from .sampling_arguments import add_logprobs_option, add_prompt_cache_option, add_sampling_options, chosen_sampling

_log = logging.getLogger(__name__)

SUMMARY = "generate text for one prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; without it stdin is read")
    add_model_option(parser)
    add_system_option(parser)
    add_sampling_options(parser, GENERATE)
    add_logprobs_option(parser)
    parser.add_argument(
        "--completions",
        type=integer(1),
        default=1,
        metavar="N",
        help="write N texts after one prompt; with a temperature, others (default 1)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the bare prompt, without the model's chat template"
    )
    parser.add_argument("--stats", action="store_true", help="tell tokens, times, bandwidth and sampling on stderr")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document with text and statistics at the end"
    )
    add_prompt_cache_option(
        parser, "take the prompt's keys and values from this file, as far as it has them, and keep them there"
    )
    add_adapter_option(parser)
    add_draft_options(parser)
    add_device_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generates, and returns the exit code."""
    if args.raw and args.system is not None:
        args.parser.error("argument --system: not allowed with argument --raw, which knows no messages")
    if args.logprobs is not None and not args.json:
        args.parser.error("argument --logprobs: needs --json, which has room for them")
    if args.prompt_cache is not None and (args.completions > 1 or args.logprobs is not None):
        args.parser.error("argument --prompt-cache: not allowed with --completions and --logprobs")
    prompt = _prompt(args)
    model = open_model(args, args.model, args.threads)
    asked: str | list[dict[str, str]] = prompt
    if args.system is not None:
        asked = [{"role": "system", "content": args.system}, {"role": "user", "content": prompt}]
    sampling = chosen_sampling(args, model)
    options = {"chat": False if args.raw else None, "draft": chosen_drafts(args, model), **sampling}
    if args.completions > 1 and (used := model.defaults().changed(sampling)).temperature == 0 and used.beams == 1:
        _log.warning("--completions: at temperature 0 all texts are the same one; give --temperature, or --beams")
    with Interrupt() as interrupt:
        interrupt.begun = args.json or args.completions > 1
        if args.prompt_cache is None and interrupt.begun:
            found = model.completions(asked, args.completions, cancel=interrupt, **options)
        else:
            pieces = model.stream(asked, cancel=interrupt, prompt_cache=args.prompt_cache, **options)
            text = "".join(pieces) if args.json else _print(pieces, interrupt)
            found = [Completion(text, (), model.last_stats)] if model.last_stats else []
        if args.json:
            print_json(_document(args.model, prompt, found))
        elif len(found) > 1:
            print("\n".join(f"[{number}]\n{completion.text}" for number, completion in enumerate(found, 1)))
    if any(completion.finish == "context" for completion in found):
        _log.warning("the model's context, %d tokens, ends before the text does", model.config.context)
    if args.stats and model.last_stats:
        print(model.last_stats.text(), file=sys.stderr)
    return interrupt.code


def _print(pieces: Iterator[str], interrupt: Interrupt) -> str:
    """Prints a text as it comes, and returns it."""
    text = []
    try:
        for piece in pieces:
            interrupt.begun = True
            text.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        if text:
            sys.stdout.write("\n")
    return "".join(text)


def _document(model: str, prompt: str, found: list[Completion]) -> dict[str, Any]:
    """What --json prints of texts: of one, or of several in a list."""
    texts = [
        {"text": completion.text, "finish": completion.finish, "stats": completion.stats.to_dict()}
        | ({"logprobs": [entry.to_dict() for entry in completion.logprobs]} if completion.logprobs else {})
        for completion in found
    ]
    return {"model": model, "prompt": prompt, **(texts[0] if len(texts) == 1 else {"completions": texts})}


def _prompt(args: argparse.Namespace) -> str:
    """The prompt of the command line, or stdin's without its last newline."""
    prompt: str | None = args.prompt
    if prompt is None:
        if sys.stdin.isatty():
            args.parser.error("PROMPT is missing: give it as an argument or on standard input")
        try:
            prompt = sys.stdin.read().removesuffix("\n")
        except UnicodeDecodeError as error:
            args.parser.error(f"PROMPT on standard input is not {error.encoding} text: {error.reason}")
    if not prompt:
        args.parser.error("PROMPT is empty")
    return str(prompt)
