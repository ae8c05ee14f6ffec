"""A stack of square int8 layers at batch 1 beside DeepSparse, in one sitting: the two take turns, and the ratio counts.

    python bench/stacks.py --deepsparse-python deepsparse-env/bin/python

DeepSparse is best in an environment of its own: pip install deepsparse==1.8.0 (Python 3.8 to 3.11). Its layers are
8-bit activations times 8-bit weights with one scale, and a ReLU; ours are as `gossamer convert` packs int8, with no
ReLU. Both bring the inputs of every layer to 8 bits within the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from common import write_result
from weights import copies, random_weight

from gossamer import _core
from gossamer.formats import measure
from gossamer.packing.planner import choose

HERE = Path(__file__).resolve().parent


class DeepSparse:
    """One stack in a process that runs for as long as the block: compiling it takes minutes."""

    def __init__(self, python: str, layers: int, size: int, sparsity: float, threads: int) -> None:
        arguments = map(str, (layers, size, sparsity, threads))
        self._process = subprocess.Popen(
            [python, str(HERE / "peer_deepsparse.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NM_DISABLE_ANALYTICS": "1"},
        )
        self.version: str = self._answer()["deepsparse"]

    def __enter__(self) -> DeepSparse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def seconds(self, repeats: int) -> list[float]:
        """Seconds of each pass."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        found: list[float] = self._answer()["seconds"]
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # the engine has words of its own to say
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"DeepSparse ended with exit code {self._process.wait()}")


def stack(layers: int, size: int, sparsity: float, group: int) -> list[_core.Weight]:
    """Random int8 weights in the format that `gossamer convert` would choose, each in memory of its own."""
    drawn = random_weight(size, size, "dense", "int8", sparsity, group=group)
    choice = choose(measure(drawn.codes()[0], group), "int8")
    one = random_weight(size, size, choice.format, "int8", sparsity, choice.pattern, group)
    return copies(one, layers * one.nbytes)


def compare(args: argparse.Namespace, layers: int, sparsity: float) -> dict[str, Any]:
    """Lets the two take turns; medians over rounds, and the spread of the rounds' ratios."""
    weights = stack(layers, args.size, sparsity, args.group)
    rounds: dict[str, list[float]] = {"gossamer": [], "deepsparse": []}
    with DeepSparse(args.deepsparse_python, layers, args.size, sparsity, args.threads) as peer:
        for _ in range(args.rounds):  # the first pass of each warms up
            rounds["deepsparse"].append(statistics.median(peer.seconds(args.repeats + 1)[1:]))
            ours = _core.time_linears(weights, threads=args.threads, repeats=args.repeats + 1)[0]
            rounds["gossamer"].append(float(statistics.median(ours[1:])))
    ratios = [theirs / ours for ours, theirs in zip(rounds["gossamer"], rounds["deepsparse"], strict=True)]
    positions = layers * args.size**2
    row: dict[str, Any] = {
        "layers": layers,
        "sparsity": sparsity,
        "format": weights[0].format,
        "bytes": sum(weight.nbytes for weight in weights),
        "deepsparse_version": peer.version,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
    for side, seconds in rounds.items():
        median = statistics.median(seconds)
        row[side] = {"seconds": median, "positions_per_second": positions / median / 1e9, "rounds": seconds}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepsparse-python", required=True, metavar="PATH", help="a Python that has deepsparse")
    parser.add_argument("--layers", nargs="+", type=int, default=[8, 32, 128], help="(%(default)s)")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.0, 0.5, 0.75, 0.9], help="(%(default)s)")
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs of a layer (%(default)s)")
    parser.add_argument("--group", type=int, default=64, help="inputs a scale, on our side (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes (%(default)s)")
    parser.add_argument("-r", "--repeats", type=int, default=10, help="timed passes a turn (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=_core.default_threads(), help="for both (%(default)s)")
    parser.add_argument("--name", default="deepsparse", help="of the file in results/ (%(default)s)")
    args = parser.parse_args()
    rows = []
    for layers in args.layers:
        for sparsity in args.sparsity:
            rows.append(compare(args, layers, sparsity))
            ours, theirs = (rows[-1][side]["positions_per_second"] for side in ("gossamer", "deepsparse"))
            ratio = rows[-1]["ratio"]
            print(
                f"{layers:4} layers, {sparsity:4.0%} zeros, {rows[-1]['format']:6}: {ours:6.1f} against {theirs:6.1f} "
                f"G positions/s, ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
                file=sys.stderr,
            )
    settings = {name: getattr(args, name) for name in ("size", "group", "rounds", "repeats", "threads")}
    median = statistics.median(row["ratio"]["median"] for row in rows)
    print(f"median of the ratios: {median:.2f}", file=sys.stderr)
    document = {"type": "int8", **settings, "median_ratio": median, "rows": rows}
    print(f"written: {write_result(args.name, document)}")


if __name__ == "__main__":
    main()
