"""`gossamer batch`: a file of prompts, answered line by line."""

from __future__ import annotations

import argparse
import re
import time

from ..generation.sampling_options import GENERATE
from ..generation.scheduler import MOST
from .interrupt import told
from .options import (
    add_adapter_option,
    add_device_option,
    add_draft_options,
    add_engine_options,
    add_force_option,
    add_model_option,
    add_system_option,
    chosen_drafts,
    integer,
    nonempty,
    open_model,
)
from .output import print_json
from .progress import progress
from .sampling_arguments import add_logprobs_option, add_sampling_options, sampling_options

SUMMARY = "answer a file of prompts, many at once"


def size(text: str) -> int:
    """Reads a number of bytes such as 500M or 2G."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kKmMgG]?)", text, re.ASCII)
    value = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()] if match else 0.0
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be a number of bytes from 1, as 500M or 2G, got {text!r}")
    return int(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = (
        'A line of IN is {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}, with "id" and '
        "sampling options of its own if it likes; see docs/batch.md. A run that was stopped goes on when it is started "
        "again."
    )
    parser.add_argument("src", metavar="IN.jsonl", type=nonempty, help="prompts, a JSON object a line")
    parser.add_argument("dst", metavar="OUT.jsonl", type=nonempty, help="answers to write, a line for each line")
    add_model_option(parser)
    parser.add_argument(
        "--batch",
        type=integer(1),
        default=MOST,
        metavar="N",
        help="texts that are written at once (default %(default)s)",
    )
    parser.add_argument(
        "--kv-limit",
        type=size,
        default=0,
        metavar="BYTES",
        help="most memory for keys and values, as 2G: beyond it texts wait for one another (default: no limit)",
    )
    add_system_option(parser)
    add_sampling_options(parser, GENERATE)
    add_logprobs_option(parser)
    parser.add_argument("--raw", action="store_true", help="continue bare prompts, without the model's chat template")
    add_force_option(parser, "replace OUT.jsonl, and begin anew where another run was stopped")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    add_adapter_option(parser)
    add_draft_options(parser)
    add_device_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answers the file, says how much there was, and returns the exit code."""
    from ..generation.batch_files import batch_file, check_files

    if args.raw and args.system is not None:
        args.parser.error("argument --system: not allowed with argument --raw, which knows no messages")
    check_files(args.src, args.dst, args.force)
    model = open_model(args, args.model, args.threads)
    drafts = chosen_drafts(args, model)
    started = time.perf_counter()
    with told(f"{args.dst}.part"), progress() as report:
        result = batch_file(
            model,
            args.src,
            args.dst,
            model.defaults().changed(sampling_options(args)),
            chat=False if args.raw else None,
            system=args.system,
            most=args.batch,
            draft=drafts,
            force=args.force,
            progress=report,
        )
    seconds = time.perf_counter() - started
    rate = result.new_tokens / seconds
    if args.json:
        print_json({"model": args.model, "path": args.dst, **vars(result), "tokens_per_second": rate})
    else:
        errors = f", {result.errors} of them errors" if result.errors else ""
        resumed = f", {result.resumed} of them there already" if result.resumed else ""
        print(f"{args.dst}: {result.lines} lines{errors}{resumed}; {result.new_tokens} tokens, {rate:.1f} tokens/s")
    return 0
