"""`gossamer eval`: perplexity of a model over a text."""

from __future__ import annotations

import argparse
import math

from ..errors import GossamerError
from ..generation.perplexity import CONTEXT, perplexity
from .options import (
    MODEL_HELP,
    add_device_option,
    add_engine_options,
    add_revision_option,
    integer,
    nonempty,
    open_model,
)
from .output import print_json
from .progress import progress

SUMMARY = "measure the perplexity of a model over a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL", type=nonempty, help=MODEL_HELP)
    add_revision_option(parser)
    parser.add_argument(
        "--text", type=nonempty, required=True, metavar="FILE", help="UTF-8 text file, or a folder of them"
    )
    parser.add_argument(
        "--context",
        type=integer(2),
        metavar="N",
        help=f"tokens a window (default {CONTEXT}, or what the model holds where that is less)",
    )
    parser.add_argument(
        "--windows", type=integer(1), default=0, metavar="N", help="read only the first N windows (all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_device_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and returns the exit code."""
    from ..text.calibration import read_text

    text = read_text(args.text)
    if not text:
        raise GossamerError(f"{args.text}: the text is empty")
    model = open_model(args, args.model, args.threads)
    with progress() as report:
        result = perplexity(model, text, context=args.context, max_windows=args.windows, progress=report)
    if not math.isfinite(result.ppl):
        raise GossamerError(f"{args.model}: the perplexity is {result.ppl}: its logits are of no use")
    if args.json:
        print_json(
            {
                "model": args.model,
                "text": args.text,
                "context": result.context,
                "perplexity": result.ppl,
                "tokens": result.tokens,
                "windows": result.windows,
                "seconds": result.seconds,
            }
        )
    else:
        print(
            f"perplexity {result.ppl:.3f} over {result.tokens} tokens in {result.windows} windows of {result.context}, "
            f"{result.seconds:.1f} s"
        )
    return 0
