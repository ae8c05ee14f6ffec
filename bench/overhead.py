"""What the engine adds to its products: a decode step beside the same weights multiplied without anything around them.

    python bench/overhead.py packed-int8 packed-int4

The products are replayed twice: region by region as in a step (q, k and v together, gate and up together), and all
weights with inputs of one width in a single region, in which no thread ever waits for another. Step and replays take
turns; the share of a step that is not in a replay is the overhead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

import gossamer
from gossamer import _core

CONTEXT = 64
STEPS = 20


def measure(path: str, threads: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds of the medians of each."""
    model = gossamer.load(path, threads=threads)
    regions = _regions(model)
    widths: dict[int, list[_core.Weight]] = {}
    for weight in (weight for region in regions for weight in region):
        widths.setdefault(weight.cols, []).append(weight)
    decoder, one = model.decoder, np.array([100], np.int32)
    decoder.step([(0, np.arange(CONTEXT, dtype=np.int32) + 100)])
    seconds: dict[str, list[float]] = {"step": [], "regions": [], "no_barriers": []}
    for _ in range(rounds):
        steps = []
        for _ in range(STEPS):
            start = time.perf_counter()
            decoder.step([(0, one)])
            steps.append(time.perf_counter() - start)
            decoder.rollback(0, 1)
        seconds["step"].append(statistics.median(steps))
        for name, groups in (("regions", regions), ("no_barriers", list(widths.values()))):
            times = _core.time_linears(groups, threads=threads, repeats=STEPS)[0]
            seconds[name].append(float(np.median(times)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    shares = {name: 1 - medians[name] / medians["step"] for name in ("regions", "no_barriers")}
    row = {"model": Path(path).name, "threads": threads, "bytes_per_token": decoder.weight_bytes}
    return {**row, "seconds": medians, "overhead": shares, "rounds": seconds}


def _regions(model: gossamer.Model) -> list[list[_core.Weight]]:
    weights = model.weights
    regions = [
        [weights[f"layers.{layer}.{name}"] for name in group.linears]
        for layer, block in enumerate(model.config.blocks)
        for branch in block.branches
        for group in branch.mixer.groups
    ]
    return [*regions, [weights.get("head") or weights["embed"]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="packed folders")
    parser.add_argument("--rounds", type=int, default=10, help="turns that each takes (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=_core.default_threads(), help="(%(default)s)")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        rows.append(measure(model, args.threads, args.rounds))
        ms = {name: f"{1e3 * value:.3f}" for name, value in rows[-1]["seconds"].items()}
        shares = " and ".join(f"{share:.3f}" for share in rows[-1]["overhead"].values())
        print(f"{rows[-1]['model']}: {ms} ms; overhead {shares} (with and without barriers in the replay)")
    print(f"written: {write_result('overhead', {'context': CONTEXT, 'steps': STEPS, 'rows': rows})}")


if __name__ == "__main__":
    main()
