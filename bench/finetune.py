"""What finetuning brings back: a model pruned, trained, packed; perplexity on two held-out texts before and after.

    python bench/finetune.py WORK --tokens 100k --budget-minutes 45

Everything lies in the folder WORK and is made only once, so that the same command goes on after a stop (Ctrl-C, kill):
the pruned checkpoint (calibrated as in bench/quality.py; with int4 rounded in the sweep), the training texts
(what calibration takes its windows from, whole; never the held-out texts), the finetuned checkpoint, and the packed
models that are measured. `--texts factbook` leaves the other kind of the held-out texts out of the training; `--samples
FOLDER` adds what `gossamer sample` wrote.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import corpora
from common import write_result
from models import pruned_once

import gossamer
from gossamer.cli.progress import progress
from gossamer.cli.sample import amount
from gossamer.finetune import Options, Parts, finetune, plot
from gossamer.folders import write_file
from gossamer.generation.perplexity import perplexity
from gossamer.packing.convert import convert
from gossamer.pictures import new_figure
from gossamer.pruning import DEFAULT_METHOD, METHODS
from gossamer.zoo import builtin

WINDOWS, CONTEXT = 8, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that everything is kept in")
    parser.add_argument("--model", type=Path, help="dense checkpoint or GGUF file (the built-in SmolLM2)")
    parser.add_argument("--method", choices=METHODS, default=DEFAULT_METHOD, help="how it is pruned (%(default)s)")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--weights", choices=("stored", "int8", "int4"), default="int8", help="rounded to in the loop")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--texts", nargs="*", choices=corpora.KINDS, default=corpora.KINDS, help="kinds to train on")
    parser.add_argument("--samples", type=Path, action="append", default=[], help="folder of samples; repeatable")
    parser.add_argument("--tokens", type=amount, default=0)
    parser.add_argument("--budget-minutes", type=float, default=0.0)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--loss", type=float, nargs=3, default=(1.0, 0.0, 1.0), metavar=("CE", "SQUAREHEAD", "KL"))
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--validation-windows", type=int, default=8)
    parser.add_argument("--validations", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prune-only", action="store_true", help="make the pruned checkpoint, and no more")
    parser.add_argument("--plot", type=Path, help="draw the curves into this picture")
    parser.add_argument("--name", default="finetune", help="of the file in results/ (%(default)s)")
    args = parser.parse_args()

    figure = new_figure(args.plot) if args.plot else None
    packages = corpora.fetch()
    calibration, held_out = corpora.split(*packages)
    text = args.work / "calibration.txt"
    write_file(text, calibration)
    with progress() as bar:
        dense = args.model or builtin.source("smollm2-135m-instruct-dense", bar)
        group = args.group if args.weights == "int4" else 0
        pruned = pruned_once(dense, args.work, text, args.method, args.sparsity, group, bar)
        if args.prune_only:
            return
        if not (args.work / "texts").exists():
            corpora.write_training(*packages, args.work / "texts")
        tuned = args.work / f"{args.name}-{100 * args.sparsity:g}-{args.weights}"
        if not tuned.exists():
            data = [*(args.work / "texts" / kind for kind in args.texts), *args.samples]
            finetune(pruned, tuned, teacher=dense, data=data, options=_options(args), progress=bar)
    report = json.loads((tuned / "gossamer_finetune.json").read_text(encoding="utf-8"))
    type_ = "int8" if args.weights == "stored" else args.weights
    rows = [measure("dense", dense, "", args, held_out)]
    rows += [measure(name, path, type_, args, held_out) for name, path in (("pruned", pruned), ("finetuned", tuned))]
    first, before, after = (row["perplexity"] for row in rows)
    closed = {name: (before[name] - after[name]) / (before[name] - first[name]) for name in held_out}
    over_dense = {name: after[name] / first[name] for name in held_out}
    result = {
        "command": shlex.join(["python", "bench/finetune.py", "WORK", *(a.split("/")[-1] for a in sys.argv[2:])]),
        "setting": {"model": Path(dense).name, "windows": WINDOWS, "context": CONTEXT, "group": args.group},
        "rows": rows,
        "closed": closed,
        "over_dense": over_dense,
        "training": report,
    }
    print(json.dumps({"rows": rows, "closed": closed, "over_dense": over_dense}, indent=1), file=sys.stderr)
    print(write_result(args.name, result))
    if figure is not None:
        plot.draw(figure, report, args.plot)


def _options(args: argparse.Namespace) -> Options:
    names = ("tokens", "budget_minutes", "length", "batch", "accumulate", "lr", "weights", "group", "recompute")
    names += ("validation_windows", "validations", "device", "threads")
    return Options(loss=Parts(*args.loss), **{name: getattr(args, name) for name in names})


def measure(name: str, path: Path, type_: str, args: argparse.Namespace, held_out: dict[str, str]) -> dict[str, Any]:
    """Packs a checkpoint once, unless it is to be taken as it is (""), and measures its perplexity on both texts."""
    packed = path
    if type_:
        packed = args.work / f"{Path(path).name}-packed-{type_}-{args.group}"
        if not packed.exists():
            convert(path, packed, weights=type_, group=args.group)
    model = gossamer.load(str(packed), activations="auto" if type_ else "f32", threads=args.threads)
    found = {
        text: perplexity(model, content, context=CONTEXT, max_windows=WINDOWS).ppl for text, content in held_out.items()
    }
    return {"row": name, "type": type_ or "stored", "bytes": model.decoder.weight_bytes, "perplexity": found}


if __name__ == "__main__":
    main()
