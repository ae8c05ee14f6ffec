"""What the examples share: their options, and time and size before and after `sparsify`."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import gossamer.torch as gt


def options(about: str, default: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all examples have.

    Args:
        about: The example's docstring.
        default: What runs where no model is named; None where one has to be.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help=f"a folder or a hub id{f' (default: {default})' if default else ''}")
    parser.add_argument("--tiny", action="store_true", help="a tiny model with random weights instead")
    parser.add_argument("--sparsity", type=float, default=0.5, help="zeros to prune to first; 0: none (%(default)s)")
    parser.add_argument("--weights", default="auto", help="auto, f32, bf16, f16, int8 or int4 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs to take the median time of (%(default)s)")
    return parser


def before_and_after(model: nn.Module, run: Callable[[], Any], args: argparse.Namespace) -> tuple[Any, Any]:
    """Runs a pruned model as it is and sparsified, prints time, size and what was chosen, and returns both results."""
    torch.manual_seed(0)
    dense, dense_seconds, dense_bytes = run(), _seconds(run, args.rounds), _bytes(model)
    report = gt.sparsify(model, weights=args.weights, **({"format": "bitmap"} if args.tiny else {}))
    packed, packed_seconds, packed_bytes = run(), _seconds(run, args.rounds), _bytes(model)
    for (kind, why), count in Counter(_choice(layer) for layer in report).most_common():
        print(f"{count:4} linear layers {kind}{f': {why}' if why else ''}")
    print(
        f"time   {1e3 * dense_seconds:9.1f} ms -> {1e3 * packed_seconds:9.1f} ms  {dense_seconds / packed_seconds:.2f}x"
    )
    print(f"size   {dense_bytes / 1e6:9.1f} MB -> {packed_bytes / 1e6:9.1f} MB  {dense_bytes / packed_bytes:.2f}x")
    return dense, packed


def _choice(layer: gt.LayerReport) -> tuple[str, str]:
    return (f"packed as {layer.format}, {layer.type}", "") if layer.packed else ("left dense", layer.why)


def _seconds(run: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _bytes(model: nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
