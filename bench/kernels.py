"""Every kernel of the registry at the linear shapes of real models: checked against float64, warmed up, timed.

    python bench/kernels.py                                       beyond every cache: weights take turns
    python bench/kernels.py --in-cache --kernels 'csr|bitmap' --sparsity 0.95
    python bench/kernels.py --acceptance                          the rows that this project promises, and their ratios

Beyond the cache, reads of as many bytes that do nothing with them take turns with the kernel, and the share is the
kernel's bytes a second over those of the better kind of read, plain or prefetched. Integer weights have groups of 64.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
from typing import Any

import numpy as np
from common import write_result
from weights import copies, random_weight

from gossamer import _core, arch
from gossamer.cli.options import pattern
from gossamer.zoo import synthetic

BEYOND = 520_000_000
"""Bytes of weights that no last-level cache keeps."""

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
UNIT = 64  # inputs that a scale of the activations serves, with groups of 64
EPSILON = 2.0**-24
SLOWEST = 0.5  # seconds of a pass: a slower kernel gets fewer weights, and memory is not what it waits for


def shapes(names: list[str]) -> dict[tuple[int, int], list[str]]:
    """Distinct (rows, cols) of the blocks' linears, with the models that have them."""
    found: dict[tuple[int, int], list[str]] = {}
    for name in names:
        config = {**synthetic.config(name), "num_hidden_layers": 1}
        sources = arch.family(config).sources(config)
        for linear in LINEARS:
            models = found.setdefault(sources[f"layers.0.{linear}"].shape, [])
            if name not in models:
                models.append(name)
    return found


def seen_by_kernels(x: np.ndarray, activations: str) -> np.ndarray:
    """Inputs as kernels get them, in float64: rounded to bf16, or to 8 bits with a scale a unit."""
    if activations == "bf16":
        bits = x.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    if activations == "a8":
        codes, scales, _ = _core.quantize_activations(x, UNIT)
        return (codes * np.repeat(scales.astype(np.float64), UNIT, axis=1))[:, : x.shape[1]]
    return x.astype(np.float64)


def check(weight: _core.Weight, activations: str, batch: int, threads: int, kernel: str | None = None) -> float:
    """Compares a product with float64 over the stored values.

    The bound holds for any order of sums: a term goes through at most cols additions and a few roundings more, each off
    by at most half a unit in the last place.

    Returns:
        The largest error over its bound.

    Raises:
        SystemExit: it is above 1.
    """
    x = np.random.default_rng(batch).standard_normal((batch, weight.cols), np.float32)
    y = _core.time_linears([weight], x, activations, threads, kernel=kernel)[1]
    inputs = seen_by_kernels(x, activations)
    stored = weight.unpack()
    worst = 0.0
    for first in range(0, weight.rows, 2048):
        rows = stored[first : first + 2048].astype(np.float64)
        bound = 1.01 * (weight.cols + 16) * EPSILON * (np.abs(inputs) @ np.abs(rows).T) + 1e-30
        worst = max(worst, float(np.max(np.abs(y[:, first : first + 2048] - inputs @ rows.T) / bound)))
    if not worst <= 1:
        raise SystemExit(f"{kernel or weight.format + ' ' + weight.type}: off by {worst:.3g} times the bound")
    return worst


class Timer:
    """Times one kind of product, in rounds that may take turns with others.

    Args:
        weights: Copies of a weight that take turns, more than a cache holds; or one that is multiplied over and over.
        activations: As for `_core.linear`.
        batch: Tokens.
        threads: Threads.
        kernel: The kernel to run instead of the best.
    """

    def __init__(
        self,
        weights: list[_core.Weight],
        *,
        activations: str = "auto",
        batch: int = 1,
        threads: int = 0,
        kernel: str | None = None,
    ) -> None:
        self.weight, self.beyond, self.batch, self.threads = weights[0], len(weights) > 1, batch, threads
        self._call = {"x": batch, "activations": activations, "threads": threads, "kernel": kernel}
        once = float(_core.time_linears(weights[:1], repeats=3, **self._call)[0].min())
        self.weights = weights[: max(1, int(SLOWEST / once))]
        self._repeats = 3 if self.beyond else max(3, min(2000, int(0.03 / once)))
        self.seconds: list[float] = []
        self._reads: dict[bool, list[float]] = {False: [], True: []}

    @property
    def bytes(self) -> int:
        """Bytes of a pass over all weights."""
        return len(self.weights) * self.weight.nbytes

    def round(self) -> None:
        """A few passes, the first of them to warm up; beyond the cache, reads of as many bytes before them."""
        if self.beyond:
            for prefetch, runs in self._reads.items():
                runs.extend(_core.read_bandwidth(self.bytes, self.threads, prefetch, 3)[1:].tolist())
        self.seconds += _core.time_linears(self.weights, repeats=self._repeats, **self._call)[0][1:].tolist()

    def result(self) -> dict[str, Any]:
        """Figures of all rounds; bandwidths in 1e9 bytes a second, positions of the matrix in 1e9 a second."""
        per_weight = statistics.median(self.seconds) / len(self.weights)
        rate = self.weight.nbytes / per_weight / 1e9
        figures = {
            "format": self.weight.format,
            "type": self.weight.type,
            "rows": self.weight.rows,
            "cols": self.weight.cols,
            "zeros": round(1 - self.weight.nnz / (self.weight.rows * self.weight.cols), 4),
            "pattern": self.weight.pattern,
            "batch": self.batch,
            "weights": len(self.weights),
            "bytes": self.weight.nbytes,
            "seconds": per_weight,
            "fastest": min(self.seconds) / len(self.weights),
            "slowest": max(self.seconds) / len(self.weights),
            "positions_per_second": self.weight.rows * self.weight.cols * self.batch / per_weight / 1e9,
            "bandwidth": rate,
        }
        if self.beyond:
            reads = {kind: self.bytes / statistics.median(runs) / 1e9 for kind, runs in self._reads.items()}
            figures |= {"plain_reads": reads[False], "prefetched_reads": reads[True]}
            figures["share"] = rate / max(reads.values())
        return figures


def registry(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a kernel, shape, sparsity (for the formats that have the choice) and batch."""
    kinds: dict[tuple[str, str], list[str]] = {}  # kernels by what they take: format and type
    for name in _core.kernels():
        if re.search(args.kernels, name):
            format, _, type, _ = name.partition("__")[0].split("_")
            kinds.setdefault((format, type), []).append(name)
    rows = []
    for (shape, models), (format, type) in itertools.product(shapes(args.models).items(), kinds):
        for zeros in args.sparsity if format in ("bitmap", "csr") else [0.0]:
            weight = random_weight(*shape, format, type, zeros, args.pattern if format == "nm" else None)
            weights = [weight] if args.in_cache else copies(weight, BEYOND)
            for name in kinds[format, type]:
                activations = name.partition("__")[0].split("_")[3]
                for batch in args.batch:
                    error = check(weight, activations, batch, args.threads, name)
                    timer = Timer(weights, batch=batch, threads=args.threads, kernel=name)
                    for _ in range(args.rounds):
                        timer.round()
                    rows.append({"kernel": name, "models": models, "error_over_bound": error, **timer.result()})
                    print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    what = f"{row['rows']}x{row['cols']} {row['zeros']:4.0%} x{row['batch']}"
    speed = f"{row['positions_per_second']:8.2f} G positions/s {row['bandwidth']:6.1f} GB/s"
    return f"{row['kernel']:40} {what:>20} {speed}" + (f" {row['share']:5.2f} of reads" if "share" in row else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acceptance", action="store_true", help="the promised rows at 4096x4096, nothing else")
    parser.add_argument("--in-cache", action="store_true", help="one weight over and over, instead of 520 MB of them")
    parser.add_argument("--models", nargs="+", default=list(synthetic.CONFIGS), choices=list(synthetic.CONFIGS))
    parser.add_argument("--kernels", default="", metavar="REGEX", help="names to time (all that run here)")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.5, 0.95], help="of bitmap and csr (0.5 0.95)")
    parser.add_argument("--pattern", type=pattern, default=(2, 4), metavar="N:M", help="of nm (2:4)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4], help="tokens at a time (1 4)")
    parser.add_argument("-t", "--threads", type=int, default=_core.default_threads(), help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of kernel and reads (%(default)s)")
    parser.add_argument("--name", help="of the file in results/ (kernels, or kernels_acceptance)")
    args = parser.parse_args()
    setting = {"threads": args.threads, "rounds": args.rounds}
    if args.acceptance:
        from kernels_acceptance import acceptance

        result = acceptance(args.threads, args.rounds)
    else:
        result = {"in_cache": args.in_cache, "rows": registry(args)}
    name = args.name or ("kernels_acceptance" if args.acceptance else "kernels")
    print(f"written: {write_result(name, {**setting, **result})}", file=sys.stderr)


if __name__ == "__main__":
    main()
