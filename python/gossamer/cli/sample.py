"""`gossamer sample`: text that a model writes itself, as data to finetune on."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..finetune.samples import LENGTH
from ..text.calibration import window_length
from .interrupt import told
from .options import (
    MODEL_HELP,
    add_device_option,
    add_engine_options,
    add_force_option,
    add_revision_option,
    integer,
    need_torch,
    nonempty,
    number,
    open_model,
)
from .output import print_json
from .progress import progress

if TYPE_CHECKING:
    from ..nn.sampler import Sampler

SUMMARY = "let a model write samples of its own, to finetune a pruned one on"


def amount(text: str) -> int:
    """Reads a number of tokens such as 4096, 500k or 20M."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kKmM]?)", text, re.ASCII)
    value = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6}[match[2].lower()] if match else 0.0
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"must be a whole number of tokens from 1, as 4096, 500k or 20M, got {text!r}")
    return int(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="TEACHER", type=nonempty, help=MODEL_HELP)
    add_revision_option(parser, "TEACHER")
    parser.add_argument(
        "dst", metavar="DST", type=nonempty, help="folder to write; a run that was stopped goes on there"
    )
    parser.add_argument("--tokens", type=amount, required=True, metavar="N", help="tokens wanted, as 500k or 20M")
    parser.add_argument(
        "--length",
        type=integer(2),
        metavar="N",
        help=f"tokens a window (default {LENGTH}, or what the model holds where that is less)",
    )
    parser.add_argument("--seed", type=integer(0), default=0, metavar="S", help="of the samples (default %(default)s)")
    parser.add_argument(
        "--temperature",
        type=number(0, above=True),
        default=1.0,
        metavar="T",
        help="below 1 the likelier tokens come more often (default %(default)s)",
    )
    parser.add_argument(
        "--chat",
        type=nonempty,
        metavar="FILE",
        help="what users say in the chats: a line a turn, a blank line between conversations (default: some questions)",
    )
    parser.add_argument(
        "--documents",
        type=number(0, 1),
        default=0.5,
        metavar="S",
        help="share of the windows that are documents, not chats, from 0 to 1 (default %(default)s)",
    )
    parser.add_argument(
        "--text", type=nonempty, metavar="FILE", help="also write the samples as one text, for prune --calibration"
    )
    add_force_option(parser, "begin anew where DST holds samples of other settings, or a model; replace --text")
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Samples, says how much there is, and returns the exit code."""
    from ..finetune.samples import sample, write_text
    from ..folders import check_new_file
    from ..text.calibration import read_conversations

    if args.text is not None:
        check_new_file(args.text, force=args.force)
    conversations = None if args.chat is None else read_conversations(args.chat)
    model = _on_gpu(args) if args.device == "cuda" else open_model(args, args.model, args.threads)
    length = window_length(args.length, LENGTH, model.config.context)
    with told(args.dst), progress() as report:
        tokens = sample(
            model,
            args.dst,
            tokens=args.tokens,
            length=length,
            seed=args.seed,
            temperature=args.temperature,
            conversations=conversations,
            documents=args.documents,
            force=args.force,
            progress=report,
        )
    if args.text is not None:
        write_text(Path(args.dst), args.text, model.tokenizer)
    if args.json:
        print_json({"model": args.model, "path": args.dst, "tokens": tokens, "length": length, "seed": args.seed})
    else:
        print(f"{args.dst}: {tokens} tokens in windows of {length}, written by {args.model}")
    return 0


def _on_gpu(args: argparse.Namespace) -> Sampler:
    need_torch("sampling on a GPU")
    from ..loading import check_gpu_activations, open_packed
    from ..nn.device import find_device
    from ..nn.sampler import Sampler

    check_gpu_activations(args.activations)
    find_device("cuda")
    with progress() as report:
        return Sampler(open_packed(args.model, args.weights, progress=report, revision=args.revision), "cuda")
