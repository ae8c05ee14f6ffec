"""Speed against quality: every variant of one model, ours and llama.cpp's, in one sitting.

    python bench/frontier.py WORK [--finetuned FOLDER]... [--llama-python llama-env/bin/python]

For each: perplexity on the two held-out texts of bench/corpora.py, bytes, and tokens a second while writing, where all
variants take turns for several rounds. Ours are the dense model and a pruned one at each sparsity, with int8 values and
with int4 ones (rounded while pruning), and the finetuned checkpoints, with the type that they were trained for.
Made models are kept in WORK under the names that bench/quality.py --keep gives them. The plot shows each side's Pareto
line: what no other variant of the side beats on both axes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import corpora
from common import ROOT, write_result
from models import pruned_once
from peers import Gossamer, Llama

import gossamer
from gossamer.packing.convert import convert
from gossamer.pictures import legend_below, new_figure, place_labels, plain_ticks, save_figure
from gossamer.pruning import DEFAULT_METHOD
from gossamer.zoo import builtin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LLAMA_TYPES = ("Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q4_1", "Q3_K_M", "Q2_K")
VARIANTS = tuple(
    f"{zeros} {kind}" for zeros in ("0", "0.4", "0.5", "0.6") for kind in ("int8:64", "int4:64", "int4:32")
)
PANEL_HEIGHT = 4.0  # inches
COLOURS = {"gossamer": "tab:blue", "llama.cpp": "tab:orange"}
TITLES = {"factbook": "prose of the factbook", "addresses": "addresses after 2019"}  # as docs/finetuning.md has them
Point = dict[str, Any]


def pareto(points: Sequence[Point], text: str) -> list[Point]:
    """Returns the points that no other is both faster and better than, the fastest first.

    Args:
        points: Of one side.
        text: Whose perplexity counts.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p["tokens_per_second"]["median"], p["perplexity"][text])):
        if not best or point["perplexity"][text] < best[-1]["perplexity"][text]:
            best.append(point)
    return best


def variants(args: argparse.Namespace) -> list[tuple[str, float, Path]]:
    """Makes our models; returns name, zeros and packed folder of each."""
    dense = args.model or builtin.source("smollm2-135m-instruct-dense")
    text = args.work / "calibration.txt"
    if not text.exists():
        text.write_text(corpora.split(*corpora.fetch())[0], encoding="utf-8")
    found = []
    for variant in args.variants:
        zeros, kind, *rest = variant.split()
        method = rest[0] if rest else DEFAULT_METHOD
        type_, _, group = kind.partition(":")
        source = dense
        if float(zeros):
            source = pruned_once(dense, args.work, text, method, float(zeros), int(group) if type_ == "int4" else 0)
        how = f" by {method}" if float(zeros) else ""
        found.append((f"{float(zeros):.0%} zeros{how}, {type_}, groups of {group}", source, type_, int(group)))
    for folder in args.finetuned:
        options = json.loads((folder / "gossamer_finetune.json").read_text(encoding="utf-8"))["options"]
        type_ = "int8" if options["weights"] == "stored" else options["weights"]
        found.append((f"finetuned: {folder.name}", folder, type_, options["group"]))
    packed = []
    for name, source, type_, group in found:
        folder = args.work / f"{Path(source).name}-packed-{type_}-{group}"
        if not folder.exists():
            convert(source, folder, weights=type_, group=group)
        matrices = [w for n, w in gossamer.load(str(folder)).weights.items() if n.startswith("layers.")]
        zeros = 1 - sum(w.nnz for w in matrices) / sum(w.rows * w.cols for w in matrices)
        packed.append((name, zeros, folder))
    return packed


def measure(args: argparse.Namespace) -> list[Point]:
    """Measures all variants of both sides."""
    sides: list[tuple[str, str, float, Any]] = [
        ("gossamer", name, zeros, Gossamer(args, str(folder))) for name, zeros, folder in variants(args)
    ]
    if args.llama_python:
        sides += [("llama.cpp", kind, 0.0, Llama(args, kind, args.work)) for kind in args.llama_types]
    _, held_out = corpora.split(*corpora.fetch())
    runs: list[list[float]] = [[] for _ in sides]
    sizes = [0] * len(sides)
    for turn in range(args.rounds):
        for index, (side, name, _, model) in enumerate(sides):
            print(f"round {turn + 1} of {args.rounds}: {side} {name}", file=sys.stderr)
            result = model.bench(args)
            runs[index].append(statistics.median(result[f"tg{args.new}"]))
            sizes[index] = result["bytes"]
    points = []
    for (side, name, zeros, model), rounds, size in zip(sides, runs, sizes, strict=True):
        quality = {}
        for text, content in held_out.items():
            args.text = args.work / f"held-out-{text}.txt"
            args.text.write_text(content, encoding="utf-8")
            quality[text] = model.perplexity(args)["perplexity"]
        speed = {"median": statistics.median(rounds), "rounds": rounds}
        points.append(
            {
                "side": side,
                "name": name,
                "zeros": zeros,
                "bytes": size,
                "perplexity": quality,
                "tokens_per_second": speed,
            }
        )
        print(points[-1], file=sys.stderr, flush=True)
    return points


def draw(figure: Figure, points: Sequence[Point], path: Path) -> None:
    """Draws perplexity against tokens a second for each text, with each side's Pareto line.

    Points bear numbers; the names behind these stand below.
    """
    figure.clear()
    texts = list(points[0]["perplexity"])
    panels = dict(zip(texts, figure.subplots(1, len(texts), squeeze=False)[0], strict=True))
    numbered = sorted(points, key=lambda p: (p["side"], -p["tokens_per_second"]["median"]))
    speeds = [point["tokens_per_second"]["median"] for point in numbered]
    colours = [COLOURS[point["side"]] for point in numbered]
    handles = []
    for text, axes in panels.items():
        for side in sorted({point["side"] for point in points}):
            line = pareto([point for point in points if point["side"] == side], text)
            fast = [point["tokens_per_second"]["median"] for point in line]
            axes.plot(fast, [p["perplexity"][text] for p in line], color=COLOURS[side], linewidth=1)
        handles = [
            axes.scatter(speed, point["perplexity"][text], color=colour, s=12)
            for point, speed, colour in zip(numbered, speeds, colours, strict=True)
        ]
        axes.set(xlabel="tokens a second, writing", title=TITLES.get(text, text), yscale="log")
        axes.margins(0.08)
        axes.grid(alpha=0.3)
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
    panels[texts[0]].set_ylabel("perplexity, lower is better")
    names = [f"{number}  {point['side']}: {point['name']}" for number, point in enumerate(numbered, 1)]
    legend_below(figure, handles, names, PANEL_HEIGHT)
    for text, axes in panels.items():
        places = [(speed, point["perplexity"][text]) for speed, point in zip(speeds, numbered, strict=True)]
        place_labels(axes, places, [str(number + 1) for number in range(len(points))], colours)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that made models are kept in")
    parser.add_argument("--model", type=Path, help="dense checkpoint or GGUF file (the built-in SmolLM2)")
    parser.add_argument("--finetuned", type=Path, action="append", default=[], metavar="FOLDER", help="repeatable")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=VARIANTS,
        help="zeros, type and group, and a method unless it is the default: '0.5 int8:64 sparsegpt'",
    )
    parser.add_argument(
        "--llama-python", metavar="PATH", help="a Python that has llama-cpp-python; without it, ours alone"
    )
    parser.add_argument("--llama-types", nargs="*", default=LLAMA_TYPES)
    parser.add_argument("--rounds", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("-n", "--new", type=int, default=128, help="tokens to write (%(default)s)")
    parser.add_argument("-r", "--repeats", type=int, default=3, help="timed runs a turn (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--name", default="frontier", help="of the file in results/ (%(default)s)")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "frontier.svg")
    args = parser.parse_args()
    figure = new_figure(args.plot, height=PANEL_HEIGHT)
    args.work.mkdir(parents=True, exist_ok=True)
    args.prompt, args.synthetic = 0, None  # what peers.py has beside these
    args.gguf = args.model or builtin.source("smollm2-135m-instruct-dense")
    points = measure(args)
    settings = {name: getattr(args, name) for name in ("rounds", "repeats", "new", "threads", "context", "windows")}
    print(write_result(args.name, {"model": args.gguf.name, **settings, "points": points}))
    draw(figure, points, args.plot)


if __name__ == "__main__":
    main()
