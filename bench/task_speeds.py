"""Speeds of the forms that bench/tasks.py measures the quality of, in one sitting: they take turns for several rounds.

    python bench/task_speeds.py [--llama-python llama-env/bin/python]

Weights are random, in the shape of SmolLM2-135M: shape, zeros and format decide the speed, and nothing else does.
llama.cpp's side runs the built-in model, quantized by it. Run it on an idle machine. bench/task_report.py lays the
speeds beside the scores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import write_result
from peers import Llama
from tasks import LLAMA_TYPES, dense_forms, kind

from gossamer.cli.task_rows import size
from gossamer.generation.model import Model
from gossamer.generation.ready import ready
from gossamer.generation.speeds import measure
from gossamer.zoo import builtin, synthetic

SHAPE = "smollm2-135m"
ROWS = ("int4-60", "int4-60-head4", "int4-70", "int4-80", "int8-60", "int8-75")


def models(args: argparse.Namespace) -> dict[str, Model]:
    """Our side by the names of bench/tasks.py."""
    forms = [(f"dense {label}", *form, 0.0) for label, form in dense_forms().items()]
    for name in args.rows:
        type_, zeros, head = kind(name)
        forms.append((f"{name} {type_}:{args.group}", type_, args.group, head, zeros))
    made = {}
    for name, type_, group, head, zeros in forms:
        print(f"making {name}", file=sys.stderr)
        packed = synthetic.pack(SHAPE, weights=type_, group=group, head=head, sparsity=zeros)
        made[name] = ready(packed, threads=args.threads)
    return made


def sides(args: argparse.Namespace, ours: dict[str, Model], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each side's turn is: it returns the runs, and bytes."""

    def own(model: Model) -> Callable[[], dict[str, Any]]:
        def turn() -> dict[str, Any]:
            (row,) = measure(model, 0, args.new, args.repeats, lambda *_: None)
            return {"runs": row["runs"], **size(model)}

        return turn

    def other(llama: Llama) -> Callable[[], dict[str, Any]]:
        def turn() -> dict[str, Any]:
            found = llama.bench(args)
            return {"runs": found[f"tg{args.new}"], "bytes": found["bytes"]}

        return turn

    found = {name: own(model) for name, model in ours.items()}
    if args.llama_python:
        found |= {f"llama {type_}": other(Llama(args, type_, work)) for type_ in LLAMA_TYPES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=ROWS, help=f"beside the dense ones ({' '.join(ROWS)})")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--llama-python", metavar="PATH", help="a Python that has llama-cpp-python; without it, ours")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes (%(default)s)")
    parser.add_argument("-n", "--new", type=int, default=128, help="tokens to write (%(default)s)")
    parser.add_argument("-r", "--repeats", type=int, default=3, help="timed runs a turn (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where quantized files are kept (a temporary one)")
    args = parser.parse_args()
    args.prompt, args.synthetic = 0, None  # what peers.py has beside these
    args.gguf = builtin.source("smollm2-135m-instruct-dense")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        turns = sides(args, models(args), work)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
        for number in range(args.rounds):
            for name, turn in turns.items():
                print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr)
                found[name].append(turn())
    forms = {}
    for name, results in found.items():
        rounds = [statistics.median(one.pop("runs")) for one in results]
        forms[name] = {**results[0], "tokens_per_second": statistics.median(rounds), "rounds": rounds}
        print(f"{name}: {forms[name]['tokens_per_second']:.1f} tokens/s", flush=True)
    settings = {name: getattr(args, name) for name in ("rounds", "repeats", "new", "threads")}
    print(write_result("task-speeds", {"model": SHAPE, **settings, "forms": forms}))


if __name__ == "__main__":
    main()
