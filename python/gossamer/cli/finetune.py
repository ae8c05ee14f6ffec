"""`gossamer finetune`: sparse finetuning of a pruned checkpoint towards its dense teacher."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from ..finetune.options import LENGTH, LR_SCHEDULES, PRECISIONS, SCHEDULES, SCORES, WEIGHTS, Options, Parts
from ..pictures import new_figure
from .options import (
    SOURCE_HELP,
    add_force_option,
    add_group_option,
    add_revision_option,
    fraction,
    given,
    integer,
    need_torch,
    nonempty,
    number,
)
from .output import print_json
from .progress import progress
from .sample import amount

SUMMARY = "train a pruned checkpoint towards its dense teacher; zeros stay zero"
INTERRUPTED = 130

_DEFAULTS = Options()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("src", metavar="STUDENT", type=nonempty, help=f"the pruned model: {SOURCE_HELP}")
    add_revision_option(parser, "STUDENT")
    parser.add_argument("dst", metavar="DST", type=nonempty, help="folder to write; must not exist yet, or be empty")
    parser.add_argument("--teacher", required=True, type=nonempty, help=f"the dense model: {SOURCE_HELP}")
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        type=nonempty,
        metavar="PATH",
        help="UTF-8 text file, folder of them, or folder of samples by `gossamer sample`; repeatable",
    )
    length = parser.add_argument_group("how long; one pass over the data where neither is given")
    length.add_argument("--tokens", type=amount, default=0, metavar="N", help="tokens to train on, as 500k or 20M")
    length.add_argument("--budget-minutes", type=number(0, above=True), metavar="M", help="minutes to train")

    loss = parser.add_argument_group("the loss")
    for name, what in (
        ("ce", "cross entropy of the next token"),
        ("squarehead", "distance of hidden states from the teacher's"),
        ("kl", "divergence from the teacher's predictions"),
    ):
        loss.add_argument(
            f"--{name}",
            type=number(0),
            default=getattr(_DEFAULTS.loss, name),
            metavar="X",
            help=f"weight of the {what} (default %(default)g)",
        )

    zeros = parser.add_argument_group("zeros and values")
    _choice(zeros, "schedule", SCHEDULES, "fixed keeps the zeros that are there, cubic raises them to --sparsity")
    zeros.add_argument("--sparsity", type=fraction, metavar="X", help="zeros of each matrix in the end, with cubic")
    _choice(zeros, "scores", SCORES, "what cubic drops by")
    _choice(zeros, "weights", WEIGHTS, "train with values rounded as convert --weights will round them")
    add_group_option(zeros)

    steps = parser.add_argument_group("steps")
    steps.add_argument(
        "--length",
        type=integer(2),
        metavar="N",
        help=f"tokens a window (default {LENGTH}, or what the models hold where that is less)",
    )
    _number(steps, "batch", integer(1), "windows in a forward pass")
    _number(steps, "accumulate", integer(1), "forward passes in a step")
    _number(steps, "lr", number(0, above=True), "largest learning rate of AdamW")
    _choice(steps, "lr-schedule", LR_SCHEDULES, "how it falls")
    _number(steps, "warmup", fraction, "part of the training in which it rises")
    _number(steps, "weight-decay", number(0), "of AdamW")
    _number(steps, "clip", number(0), "largest norm of the gradient, 0 does not clip")
    _choice(steps, "precision", PRECISIONS, "what is multiplied; weights and sums are f32")
    steps.add_argument(
        "--recompute", action="store_true", help="compute blocks again in the backward pass, which saves memory"
    )

    run = parser.add_argument_group("the run")
    _number(run, "validation", fraction, "fraction of the documents set aside to look at")
    _number(run, "validation-windows", integer(1), "windows of them to look at")
    _number(run, "validations", integer(0), "how often, beside before and after")
    _number(run, "save-minutes", number(0), "most minutes between two saved states")
    run.add_argument("--save-steps", type=integer(1), metavar="N", help="most steps between two (default no limit)")
    _number(run, "seed", integer(0), "of the order of the data")
    _choice(run, "device", ("auto", "cpu", "cuda"), "where")
    run.add_argument("--threads", type=integer(1), metavar="N", help="threads on the CPU (default: as torch chooses)")
    run.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves into this picture")
    add_force_option(run, "replace a model that lies at DST, when the training has ended")
    run.add_argument("--json", action="store_true", help="print the report as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Trains, prints the report, and returns the exit code."""
    need_torch("finetuning")
    from ..finetune.pipeline import finetune
    from ..finetune.plot import draw
    from ..finetune.trainer import Interrupted
    from ..loading import locate

    names = {field.name for field in dataclasses.fields(Options)} - {"loss"}
    options = Options(loss=Parts(args.ce, args.squarehead, args.kl), **given(args, *sorted(names)))
    figure = new_figure(args.plot) if args.plot else None
    with progress() as bar:
        try:
            report = finetune(
                locate(args.src, bar, args.revision),
                args.dst,
                teacher=locate(args.teacher, bar),
                data=args.data,
                options=options,
                force=args.force,
                progress=bar,
            )
        except Interrupted as stop:
            print(f"gossamer: {stop}", file=sys.stderr)
            return INTERRUPTED
    if figure is not None:
        draw(figure, dataclasses.asdict(report), args.plot)
    if args.json:
        print_json(dataclasses.asdict(report))
        return 0
    print(f"{args.dst}: {report.steps} steps, {report.tokens} tokens, {report.zeros:.1%} zeros")
    if report.curve:
        first, last = report.curve[0], report.curve[-1]
        print(f"perplexity on documents set aside: {first['perplexity']:.2f} before, {last['perplexity']:.2f} after")
    if report.options["weights"] in ("int8", "int4"):
        print(f"rounded for convert --weights {report.options['weights']} --group {report.options['group']}")
    print(f"took {report.seconds / 60:.1f} min")
    return 0


def _choice(group: argparse._ActionsContainer, name: str, choices: tuple[str, ...], what: str) -> None:
    group.add_argument(
        f"--{name}",
        choices=choices,
        default=getattr(_DEFAULTS, name.replace("-", "_")),
        help=f"{what} (default %(default)s)",
    )


def _number(group: argparse._ActionsContainer, name: str, kind: object, what: str) -> None:
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{what} (default %(default)g)")  # type: ignore[arg-type]
