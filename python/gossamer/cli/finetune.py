"""`gossamer finetune`: sparse finetuning of a checkpoint towards its dense teacher, on texts or for a task."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from ..errors import naming
from ..files import read_json
from ..finetune.options import (
    HEADS,
    LENGTH,
    LR_SCHEDULES,
    PRECISIONS,
    RAISING,
    RAISING_SOLVED,
    SCHEDULES,
    SCORES,
    SOLVED,
    WEIGHTS,
    Options,
    Parts,
)
from ..folders import write_file
from ..formats import INTEGER_TYPES, STORED
from ..pictures import new_figure
from .evaluate import add_metric_option
from .interrupt import INTERRUPTED
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

SUMMARY = "train a pruned checkpoint towards its dense teacher, or a sparse model for a task; zeros stay zero"
HELD_OUT, TOP, BATCH = 0.1, 32, 1

_DEFAULTS = Options()
_TASK_LOSS = Parts(ce=0.5, squarehead=1.0, kl=1.0)
_TASK_LOSS_ALONE = Parts(1.0, 0.0, 0.0)
_TASK_SCORES = "sparsegpt"
_FOR_TASK = ("held_out", "metric", "dense_first", "dense_tokens", "dense_minutes", "dense_lr", "max_new_tokens")


def held_out(text: str) -> Path | float:
    """Reads a share above 0 and below 1, or else a file's name, off the command line."""
    try:
        float(text)
    except ValueError:
        return Path(nonempty(text))
    return number(0, 1, above=True)(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "src", metavar="STUDENT", type=nonempty, help=f"the pruned model, or with --task any: {SOURCE_HELP}"
    )
    add_revision_option(parser, "STUDENT")
    parser.add_argument("dst", metavar="DST", type=nonempty, help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--teacher",
        type=nonempty,
        help=f"the dense model; not needed with --task, where it is one that does the task: {SOURCE_HELP}",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data",
        action="append",
        type=nonempty,
        metavar="PATH",
        help="UTF-8 text file, folder of them, or folder of samples by `gossamer sample`; repeatable",
    )
    what.add_argument(
        "--task",
        type=nonempty,
        metavar="FILE.jsonl",
        help="prompts and completions, or messages: train, pack and measure a model for a task (docs/tasks.md)",
    )
    _add_task_options(parser.add_argument_group("tasks"))
    length = parser.add_argument_group("how long; one pass over the data where neither is given")
    length.add_argument("--tokens", type=amount, default=0, metavar="N", help="tokens to train on, as 500k or 20M")
    length.add_argument("--budget-minutes", type=number(0, above=True), metavar="M", help="minutes to train")

    loss = parser.add_argument_group("the loss")
    for name, part in (
        ("ce", "cross entropy of the next token"),
        ("squarehead", "distance of hidden states from the teacher's"),
        ("kl", "divergence from the teacher's predictions"),
    ):
        usual, alone, task = (f"{getattr(parts, name):g}" for parts in (_DEFAULTS.loss, _TASK_LOSS_ALONE, _TASK_LOSS))
        loss.add_argument(
            f"--{name}",
            type=number(0),
            metavar="X",
            help=f"weight of the {part} (default {usual}; for tasks {alone}, or {task} with a teacher)",
        )
    loss.add_argument(
        "--top",
        type=integer(0),
        metavar="N",
        help="take the divergence over the teacher's N likeliest tokens, all others being one, and compute those once; "
        f"0 takes all, at every step (default 0, for tasks without SquareHead {TOP})",
    )

    zeros = parser.add_argument_group("zeros and values")
    _choice(
        zeros,
        "schedule",
        SCHEDULES,
        "fixed keeps the zeros that are there, cubic raises them to --sparsity, dense has none",
    )
    zeros.add_argument("--sparsity", type=fraction, metavar="X", help="zeros of each matrix in the end, with cubic")
    zeros.add_argument(
        "--scores",
        choices=SCORES,
        help=f"what cubic drops by (default {_DEFAULTS.scores}, for tasks of models without an encoder {_TASK_SCORES})",
    )
    zeros.add_argument(
        "--raising",
        type=fraction,
        default=_DEFAULTS.raising,
        metavar="X",
        help=f"part of the run in which cubic raises them (default {RAISING_SOLVED:g} by {' and '.join(SOLVED)}, "
        f"{RAISING:g} by others)",
    )
    _choice(zeros, "weights", WEIGHTS, "train with values rounded as convert --weights will round them")
    add_group_option(zeros)
    _choice(zeros, "head", HEADS, "type of embedding and head with --weights int8 or int4; auto is int8")

    steps = parser.add_argument_group("steps")
    steps.add_argument(
        "--length",
        type=integer(2),
        metavar="N",
        help=f"tokens a window (default {LENGTH}, or what the models hold where that is less)",
    )
    steps.add_argument(
        "--batch",
        type=integer(1),
        metavar="N",
        help=f"windows in a forward pass (default {_DEFAULTS.batch}, for tasks {BATCH})",
    )
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
    run.add_argument(
        "--validation",
        type=fraction,
        metavar="N",
        help=f"fraction of the documents set aside to look at (default {_DEFAULTS.validation:g}); "
        "tasks have --held-out",
    )
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


def _add_task_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--held-out",
        type=held_out,
        metavar="X|FILE",
        help="what is measured on and not trained on: a share of the prompts, by a hash of each, or a file of its own "
        f"(default {HELD_OUT:g})",
    )
    add_metric_option(group)
    group.add_argument(
        "--max-new-tokens", type=integer(1), metavar="N", help="most tokens of an answer (see gossamer eval)"
    )
    group.add_argument(
        "--dense-first",
        action="store_true",
        default=None,
        help="train the teacher for the task first, by cross entropy alone; the student begins as it ends",
    )
    group.add_argument("--dense-tokens", type=amount, metavar="N", help="tokens for that (as --tokens)")
    group.add_argument(
        "--dense-minutes", type=number(0, above=True), metavar="M", help="minutes for that (as --budget-minutes)"
    )
    group.add_argument("--dense-lr", type=number(0, above=True), metavar="N", help="largest learning rate (as --lr)")


def run(args: argparse.Namespace) -> int:
    """Trains, prints the report, and returns the exit code."""
    if args.task is None:
        for name in _FOR_TASK:
            if getattr(args, name) is not None:
                args.parser.error(f"argument --{name.replace('_', '-')}: goes with --task")
        if args.teacher is None:
            args.parser.error("the following arguments are required: --teacher")
    elif args.validation is not None:
        args.parser.error("argument --validation: not allowed with argument --task, which has --held-out")
    if not args.dense_first:
        for name in ("dense_tokens", "dense_minutes", "dense_lr"):
            if getattr(args, name) is not None:
                args.parser.error(f"argument --{name.replace('_', '-')}: goes with --dense-first")
    need_torch("finetuning")
    from ..finetune.trainer import Interrupted

    try:
        return _text(args) if args.task is None else _task(args)
    except Interrupted as stop:
        print(f"gossamer: {stop}", file=sys.stderr)
        return INTERRUPTED


def _options(args: argparse.Namespace) -> Options:
    if args.group is not None and args.weights not in INTEGER_TYPES:
        args.parser.error("argument --group: goes with --weights int8 or int4")
    usual = _DEFAULTS.loss
    if args.task is not None:
        usual = _TASK_LOSS if _taught(args) else _TASK_LOSS_ALONE
    loss = dataclasses.replace(usual, **given(args, "ce", "squarehead", "kl"))
    names = {field.name for field in dataclasses.fields(Options)} - {"loss"}
    chosen = given(args, *sorted(names))
    if args.task is not None:
        chosen.setdefault("top", TOP if loss.predictions_alone else 0)
        chosen.setdefault("batch", BATCH)
    return Options(loss=loss, **chosen)


def _taught(args: argparse.Namespace) -> bool:
    """Whether a task has a teacher that does it; the model as it is before training does not."""
    return bool(args.teacher or args.dense_first)


def _text(args: argparse.Namespace) -> int:
    from ..finetune.pipeline import finetune
    from ..finetune.plot import draw
    from ..loading import locate

    options = _options(args)
    figure = new_figure(args.plot) if args.plot else None
    with progress() as bar:
        report = finetune(
            locate(args.src, bar, args.revision),
            args.dst,
            teacher=locate(args.teacher, bar),
            data=args.data,
            options=options,
            force=args.force,
            progress=bar,
        )
    if figure is not None:
        draw(figure, dataclasses.asdict(report), args.plot)
    if args.json:
        print_json(dataclasses.asdict(report))
        return 0
    print(f"{args.dst}: {report.steps} steps, {report.tokens} tokens, {report.zeros:.1%} zeros")
    if report.curve:
        first, last = report.curve[0], report.curve[-1]
        print(f"perplexity on documents set aside: {first['perplexity']:.2f} before, {last['perplexity']:.2f} after")
    if report.options["weights"] in INTEGER_TYPES:
        chosen = " ".join(f"--{name} {report.options[name]}" for name in ("weights", "group", "head"))
        print(f"rounded for convert {chosen}")
    print(f"took {report.seconds / 60:.1f} min")
    return 0


def _dense_options(options: Options, args: argparse.Namespace) -> Options:
    """Those of the teacher's own training: nobody teaches it, it has no zeros, and nothing of it is rounded."""
    tokens, minutes = args.dense_tokens, args.dense_minutes
    if tokens is None and minutes is None:
        tokens, minutes = options.tokens, options.budget_minutes
    return dataclasses.replace(
        options,
        loss=Parts(1.0, 0.0, 0.0),
        top=0,
        weights=STORED,
        group=_DEFAULTS.group,
        head=_DEFAULTS.head,
        schedule="dense",
        sparsity=0.0,
        scores=SCORES[0],
        raising=_DEFAULTS.raising,
        tokens=tokens or 0,
        budget_minutes=minutes or 0.0,
        lr=args.dense_lr or options.lr,
    )


def _task(args: argparse.Namespace) -> int:
    from ..finetune.pipeline import REPORT_FILE
    from ..finetune.plot import draw
    from ..finetune.task import RESULT, finetune_task
    from ..finetune.task_data import TaskFiles
    from ..loading import locate
    from ..packing.folder import read_packed
    from ..text.metrics import check_answers
    from .task_rows import dense_forms, row, rows_table

    options = _options(args)
    figure = new_figure(args.plot) if args.plot else None
    task = TaskFiles(Path(args.task), HELD_OUT if args.held_out is None else args.held_out)
    metric = args.metric or "exact"
    for side in (samples := task.split()):
        check_answers(metric, side)
        if args.max_new_tokens is not None and any(sample.audio for sample in side):
            args.parser.error("argument --max-new-tokens: is not for sound")
    with progress() as bar:
        source = locate(args.src, bar, args.revision)
        if args.scores is None and options.schedule == "cubic" and not _has_encoder(source):
            options = dataclasses.replace(options, scores=_TASK_SCORES)
        done = finetune_task(
            source,
            args.dst,
            task,
            options=options,
            teacher=locate(args.teacher, bar) if args.teacher else None,
            dense_first=_dense_options(options, args) if args.dense_first else None,
            force=args.force,
            progress=bar,
        )
        called = "dense" if _taught(args) else "before"
        trained = "dense" if options.schedule == "dense" else "sparse"
        models = {**dense_forms(done.teacher, called, bar), trained: read_packed(done.packed)}
        rows = []
        for name, packed in models.items():
            measured, _ = row(
                name,
                packed,
                samples[1],
                metric=metric,
                threads=args.threads or 0,
                max_new_tokens=args.max_new_tokens,
                report=bar,
            )
            rows.append(measured)
    document = {"rows": rows, "trained": {name: dataclasses.asdict(one) for name, one in done.reports.items()}}
    with naming(args.dst, "cannot write"):
        write_file(Path(args.dst) / RESULT, json.dumps({"rows": rows}, indent=1) + "\n")
    if figure is not None:
        draw(figure, read_json(done.sparse / REPORT_FILE), args.plot)
    if args.json:
        print_json(document)
        return 0
    print(
        f"{rows_table(rows)}\n\n{len(samples[1])} samples held out of {sum(map(len, samples))}; packed: {done.packed}"
    )
    return 0


def _has_encoder(source: Path) -> bool:
    from ..arch import family
    from ..checkpoints import open_checkpoint

    config = open_checkpoint(source).config
    return family(config).describe(config).encoder is not None


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
