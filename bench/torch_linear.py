"""One layer in torch: `SparseLinear` beside `torch.nn.Linear`, in one process, taking turns, beyond every cache.

    python bench/torch_linear.py                 the promised rows at 4096 x 4096, and batches up to a prompt's
    python bench/torch_linear.py --batch 1 32 --zeros 0.5

Layers rotate: each pass goes through copies that hold more than 520 MB together, so that every weight comes from
memory. A row's ratio is the dense layer's time over the packed one's; above 1 the packed one is faster. Every product
is checked against float64 first.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from typing import Any

import torch
from common import write_result
from torch import Tensor, nn

from gossamer.torch import SparseLinear

BEYOND = 520_000_000
"""Bytes of weights that no last-level cache keeps."""

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def pruned(size: int, zeros: float) -> nn.Linear:
    """A layer without bias whose weights are normal, and zero at random places."""
    torch.manual_seed(size)
    linear = nn.Linear(size, size, bias=False)
    with torch.no_grad():
        linear.weight.normal_().div_(size**0.5)
        linear.weight[torch.rand(size, size) < zeros] = 0
    return linear.requires_grad_(False)


def copies(layer: nn.Module, size: int, beyond: int) -> list[nn.Module]:
    """As many copies as hold more than `beyond` bytes together."""
    return [layer, *(copy.deepcopy(layer) for _ in range(beyond // size))]


def check(sparse: SparseLinear, x: Tensor) -> float:
    """The largest error over what any order of float32 sums allows, against float64 over the stored values.

    Where inputs are quantized to 8 bits, a step of each unit's scale is allowed, too.
    """
    inputs, stored = x[:4].double(), sparse.to_dense().weight.double()
    true, size = inputs @ stored.t(), inputs.abs() @ stored.abs().t()
    bound = 1.01 * (stored.shape[1] + 16) * 2.0**-24 * size + torch.finfo(x.dtype).eps * true.abs()
    if sparse.layout.type in ("int8", "int4"):
        bound += inputs.abs().amax() / 254 * stored.abs().sum(1)
    worst = float(((sparse(x)[:4].double() - true).abs() / bound).max())
    if not worst <= 1:
        raise SystemExit(f"{sparse}: off by {worst:.3g} times the bound")
    return worst


def passes(layers: list[nn.Module], x: Tensor, repeats: int) -> list[float]:
    """Seconds a product, for each of a few passes through all layers."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for layer in layers:
            layer(x)
        times.append((time.perf_counter() - start) / len(layers))
    return times


def row(
    dense: nn.Linear, weights: str, baseline: str, batch: int, zeros: float, rounds: int, budget: float
) -> dict[str, Any]:
    """Times one case in turns; `baseline` is the dense layer's type, and the inputs' on both sides."""
    dtype = DTYPES[baseline]
    linear = copy.deepcopy(dense).to(dtype)
    sparse = SparseLinear.from_dense(linear, weights=weights)
    x = torch.randn(batch, dense.in_features).to(dtype)
    error = check(sparse, x)
    sides = {
        "dense": copies(linear, linear.weight.numel() * linear.weight.element_size(), BEYOND),
        "sparse": copies(sparse, sparse.nbytes, BEYOND),
    }
    for name, layers in sides.items():
        once = min(passes(layers[:2], x, 2))
        sides[name] = layers[: max(2, int(budget / once))]
        passes(sides[name], x, 1)
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    for _ in range(rounds):
        for name, layers in sides.items():
            times[name] += passes(layers, x, 2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "size": dense.in_features,
        "zeros": zeros,
        "batch": batch,
        "dense": baseline,
        "weights": sparse.layout.type,
        "format": sparse.layout.format,
        "ratio": medians["dense"] / medians["sparse"],
        "dense_seconds": medians["dense"],
        "sparse_seconds": medians["sparse"],
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "layers": {name: len(layers) for name, layers in sides.items()},
        "bytes": {"dense": linear.weight.numel() * linear.weight.element_size(), "sparse": sparse.nbytes},
        "error_over_bound": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="outputs and inputs (%(default)s)")
    parser.add_argument("--zeros", nargs="+", type=float, default=[0.5, 0.9], help="fractions (0.5 0.9)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 32, 128], help="tokens (1 4 32 128)")
    parser.add_argument("--cases", nargs="+", default=["f32/f32", "bf16/bf16", "int8/f32"], metavar="PACKED/DENSE")
    parser.add_argument("--rounds", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--budget", type=float, default=0.3, help="most seconds of a pass (%(default)s)")
    parser.add_argument("--name", default="torch_linear", help="of the file in results/ (%(default)s)")
    args = parser.parse_args()
    rows = []
    with torch.no_grad():
        for zeros in args.zeros:
            dense = pruned(args.size, zeros)
            for case in args.cases:
                weights, baseline = case.split("/")
                for batch in args.batch:
                    rows.append(row(dense, weights, baseline, batch, zeros, args.rounds, args.budget))
                    r = rows[-1]
                    what = f"{zeros:.0%} {r['format']} {weights} beside dense {baseline}, batch {batch}"
                    print(f"{what:48} {r['ratio']:5.2f} x  ({1e3 * r['sparse_seconds']:.2f} ms)", flush=True)
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": args.rounds, "rows": rows}
    print(f"written: {write_result(args.name, result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
