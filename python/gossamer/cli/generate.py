"""`gossamer generate`: text for one prompt, streamed to stdout."""

from __future__ import annotations

import argparse
import sys

from ..generation.sampling_options import GENERATE
from .options import (
    add_adapter_option,
    add_device_option,
    add_engine_options,
    add_model_option,
    add_sampling_options,
    add_system_option,
    open_model,
    sampling_options,
)
from .output import print_json

SUMMARY = "generate text for one prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; without it stdin is read")
    add_model_option(parser)
    add_system_option(parser)
    add_sampling_options(parser, GENERATE)
    parser.add_argument(
        "--raw", action="store_true", help="continue the bare prompt, without the model's chat template"
    )
    parser.add_argument("--stats", action="store_true", help="tell tokens, times, bandwidth and sampling on stderr")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document with text and statistics at the end"
    )
    add_adapter_option(parser)
    add_device_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generates, and returns the exit code."""
    if args.raw and args.system is not None:
        args.parser.error("argument --system: not allowed with argument --raw, which knows no messages")
    prompt = _prompt(args)
    model = open_model(args, args.model, args.threads)
    asked: str | list[dict[str, str]] = prompt
    if args.system is not None:
        asked = [{"role": "system", "content": args.system}, {"role": "user", "content": prompt}]
    pieces = model.stream(asked, chat=False if args.raw else None, **sampling_options(args))
    if args.json:
        text = "".join(pieces)
        stats = model.last_stats.to_dict() if model.last_stats else {}
        print_json({"model": args.model, "prompt": prompt, "text": text, "stats": stats})
    else:
        begun = False
        try:
            for piece in pieces:
                begun = True
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            if begun:
                sys.stdout.write("\n")
    if args.stats and model.last_stats:
        print(model.last_stats.text(), file=sys.stderr)
    return 0


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
