"""`gossamer prune`: one-shot pruning of a checkpoint into an ordinary Hugging Face checkpoint with zeros."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..checkpoints.low_rank import FOLDER
from ..formats import STORED
from ..pruning import ALLOCATIONS, DEFAULT_METHOD, METHODS
from ..pruning.methods import CALIBRATED
from ..pruning.options import AUTO, CALIBRATING
from ..text.calibration import LENGTH, WINDOWS
from .interrupt import told
from .options import (
    SOURCE_HELP,
    add_force_option,
    add_group_option,
    add_revision_option,
    add_target_options,
    given,
    integer,
    nonempty,
    number,
)
from .output import print_json
from .progress import progress

SUMMARY = "prune a checkpoint; the result is a Hugging Face checkpoint with zeros"
DEFAULT_SPARSITY = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("src", metavar="SRC", type=nonempty, help=SOURCE_HELP)
    add_revision_option(parser, "SRC")
    parser.add_argument("dst", metavar="DST", type=nonempty, help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--method", choices=tuple(METHODS), default=DEFAULT_METHOD, help="how to prune (default %(default)s)"
    )
    add_target_options(parser, DEFAULT_SPARSITY).add_argument(
        "--bits",
        type=number(0, above=True),
        metavar="B",
        help="bits a weight that the matrices of the blocks may take, instead of --sparsity: zeros, type (int8, int4) "
        "and rank of each are searched for, such that predictions move least",
    )
    parser.add_argument(
        "--allocation",
        type=_allocation,
        metavar="WAY",
        help=f"how zeros are divided among the matrices: {', '.join(ALLOCATIONS)}, or the gossamer_prune.json of "
        "another run, which gives each its zeros in place of --sparsity (default: divergence, by what the model's "
        "predictions lose; uniform for N:M and for magnitude)",
    )
    parser.add_argument(
        "--weights",
        choices=(STORED, "int4", AUTO),
        help="int4 also rounds what stays, as convert --weights int4 does, but loses less (not with magnitude); auto "
        f"goes with --bits, and is its default (default {STORED})",
    )
    add_group_option(parser)
    parser.add_argument(
        "--rank",
        type=integer(0),
        default=0,
        metavar="R",
        help="gives every matrix a low-rank branch of this rank beside its zeros, y = W x + U (V x) (default: none); "
        "with --bits, those that it is worth its bits for",
    )
    group = parser.add_argument_group("calibration, for all methods but magnitude")
    group.add_argument(
        "--calibration",
        type=nonempty,
        metavar="FILE",
        help="UTF-8 text file, or a folder of them (default: the model's own samples); for a model with an encoder a "
        "file of pairs, source and target or audio and transcript, a JSON object a line (docs/tasks.md)",
    )
    group.add_argument("--windows", type=integer(1), metavar="N", help=f"windows of text (default {WINDOWS})")
    group.add_argument(
        "--length",
        type=integer(1),
        metavar="N",
        help=f"tokens a window (default {LENGTH}, or what the model holds where that is less)",
    )
    group.add_argument("--seed", type=integer(0), metavar="S", help="of the windows' choice (default 0)")
    parser.add_argument("--threads", type=integer(1), default=0, metavar="N", help="threads (default: as many as pay)")
    add_force_option(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")


def _allocation(text: str) -> str:
    """An argument type: a name of `ALLOCATIONS`, or a file."""
    if text not in ALLOCATIONS and not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(ALLOCATIONS)}, or a file, got {text!r}")
    return text


def run(args: argparse.Namespace) -> int:
    """Prunes, prints the report, and returns the exit code."""
    from ..loading import locate
    from ..pruning import prune

    weights = args.weights or (AUTO if args.bits else STORED)
    if args.group is not None and weights == STORED:
        args.parser.error("argument --group: goes with --weights int4 or --bits")
    if args.method not in CALIBRATED:
        for name in given(args, *CALIBRATING):
            args.parser.error(f"argument --{name}: method {args.method} reads no text")
    sparsity: float | None = args.sparsity
    if sparsity is None and args.pattern is None and not args.bits and args.allocation in (None, *ALLOCATIONS):
        sparsity = DEFAULT_SPARSITY
    with told(f"{Path(args.dst)}.pruning"), progress() as bar:
        report = prune(
            locate(args.src, bar, args.revision),
            args.dst,
            method=args.method,
            sparsity=sparsity,
            pattern=args.pattern,
            bits=args.bits or 0.0,
            allocation=args.allocation,
            weights=weights,
            **given(args, "group"),
            rank=args.rank,
            calibration=args.calibration,
            **given(args, "windows", "length", "seed"),
            threads=args.threads,
            force=args.force,
            progress=bar,
        )
    if args.json:
        print_json(dataclasses.asdict(report))
        return 0
    print(f"{args.dst}: {len(report.layers)} matrices pruned by {report.method}, {report.reached:.1%} zeros")
    if report.bits:
        int4 = sum(type_ == "int4" for type_ in report.types.values())
        print(f"{int4} matrices rounded to int4, for convert --weights auto --group {report.group}")
    elif report.weights != STORED:
        print(f"rounded for convert --weights {report.weights} --group {report.group}")
    if count := sum(map(bool, report.ranks.values())):
        print(f"low-rank branches of rank {report.rank}, of {count} matrices, are in {args.dst}/{FOLDER}")
    elif report.rank and not report.bits:
        print(f"low-rank branches of rank {report.rank} are in {args.dst}/{FOLDER}")
    if report.windows:
        print(f"calibrated on {report.windows} windows of {report.length} tokens from {report.calibration}")
    if report.pairs:
        print(f"calibrated on {report.pairs} pairs from {report.calibration}")
    if report.few_tokens:
        print(f"{len(report.few_tokens)} matrices of experts that few of these came to were pruned by magnitude")
    print(f"took {report.seconds:.1f} s")
    return 0
