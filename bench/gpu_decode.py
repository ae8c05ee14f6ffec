"""Decoding on a GPU: a model of a named shape with sparse matrices beside the same one with dense matrices.

    python bench/gpu_decode.py                         Llama-2-7B's shape, half zeros, bf16
    python bench/gpu_decode.py --zeros 0.6 --weights int8 --context 2048

Both sides are the engine of `gossamer generate --device cuda` in the same loop: one token in, logits out to the host,
the likeliest token chosen there. Blocks are copies of one random block in memory of their own. Rounds of both take
turns, and the ratio is the median of the rounds' ratios. What a step spends outside linears and attention is the
captured step less captured passes of only its linears and only its attention.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from common import write_result
from gpu_kernels import graph_of, seconds

from gossamer import _core, arch
from gossamer.arch.spec import Attention, Transformer
from gossamer.nn.cuda_ops import CudaOps
from gossamer.nn.engine import Engine
from gossamer.zoo import synthetic

WANTED = {"ratio": 1.45, "outside": 0.12}  # at least, at most


def weights_of(config: Transformer, zeros: float, type: str, group: int) -> dict[str, _core.Weight]:
    """Random weights of one block with so many zeros, at random places, and dense tables."""
    shapes = config.deeper(1).weights

    def draw(item: tuple[int, str]) -> _core.Weight:
        seed, name = item
        rng = np.random.default_rng(seed)
        values = rng.standard_normal(shapes[name], np.float32) / np.float32(shapes[name][1] ** 0.5)
        if "." not in name:
            return _core.pack(values, "dense", "bf16")
        values[rng.random(values.shape, np.float32) < zeros] = 0
        return _core.pack(values, "bitmap", type, group if type.startswith("int") else 0)

    with ThreadPoolExecutor() as pool:
        return dict(zip(shapes, pool.map(draw, enumerate(shapes)), strict=True))


def engines(
    config: Transformer,
    weights: dict[str, _core.Weight],
    device: str = "cuda",
    kernels: ModuleType | None = None,
) -> dict[str, Engine]:
    """The sparse side and the dense one, whose matrices hold the same values in bf16."""
    one = config.deeper(1)
    vectors = {name: np.ones(size, np.float32) for name, size in one.vectors.items()}
    sides = {}
    for side in ("sparse", "dense"):
        if side == "dense":
            weights = {name: _core.pack(weight.unpack(), "dense", "bf16") for name, weight in weights.items()}
        sides[side] = Engine(one, weights, vectors, device, dtype=torch.bfloat16, kernels=kernels)
        sides[side].repeat_block(config.layers)
    return sides


def tokens_a_second(engine: Engine, count: int) -> float:
    """Greedy decoding of the sequence 0; every token's logits come to the host."""
    token = 1
    start = time.perf_counter()
    for _ in range(count):
        token = int(engine.step([(0, [token])])[0].argmax())
    return count / (time.perf_counter() - start)


def parts_of_a_step(engine: Engine) -> dict[str, float]:
    """Seconds of a captured step, of its linears and of its attention, each replayed alone."""
    cache, config, ops = engine._caches[0], engine.config, engine._ops
    assert isinstance(ops, CudaOps)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=engine.device, dtype=engine.dtype)

    rows = engine._rows[:-1]
    inputs = {linear.cols: random(1, linear.cols) for linear in config.linears.values()}
    given = [inputs[config.linears[one.names[0]].cols] for one in rows]
    mixers = [branch.mixer for block in config.blocks for branch in block.branches]
    attentions = [(random(one.heads, 1, one.head_dim), one.scale) for one in mixers if isinstance(one, Attention)]
    x = random(1, config.hidden)

    def linears(_: torch.Tensor) -> torch.Tensor:
        for one, own in zip(rows, given, strict=True):
            one(own)
        return engine._network.predict(x)

    def attention(_: torch.Tensor) -> torch.Tensor:
        for (queries, scale), keys, values in zip(attentions, cache.keys, cache.values, strict=True):
            out = ops.kernels.attend(queries, keys, values, cache.position, scale)
        return out

    def step(_: torch.Tensor) -> torch.Tensor:
        return engine._step(cache)

    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "step": step,
        "linears": linears,
        "attention": attention,
    }
    with torch.inference_mode():
        graphs = {name: graph_of([call], x) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(15):
            for name, graph in graphs.items():
                times[name].append(seconds(graph))
    return {name: statistics.median(values) for name, values in times.items()}


def outside(parts: dict[str, float]) -> float:
    """Share of a step that is neither linears nor attention."""
    return (parts["step"] - parts["linears"] - parts["attention"]) / parts["step"]


def summary(rounds: list[dict[str, float]], parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Ratio and shares, beside what is promised."""
    ratios = [one["sparse"] / one["dense"] for one in rounds]
    return {
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "outside": {side: outside(found) for side, found in parts.items()},
        "wanted": WANTED,
        "kept": statistics.median(ratios) >= WANTED["ratio"] and outside(parts["sparse"]) <= WANTED["outside"],
    }


def main() -> None:
    """Runs what the command line asks for and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-2-7b", choices=list(synthetic.CONFIGS))
    parser.add_argument("--zeros", type=float, default=0.5)
    parser.add_argument("--weights", default="bf16", choices=("bf16", "int8", "int4"), help="of the sparse side")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--context", type=int, default=0, help="tokens that the cache holds before the first round")
    parser.add_argument("-n", type=int, default=64, help="tokens a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="gpu_decode", help="name of the results file")
    args = parser.parse_args()
    sizes = synthetic.config(args.shape)
    config = arch.family(sizes).describe(sizes)
    sides = engines(config, weights_of(config, args.zeros, args.weights, args.group))
    for engine in sides.values():
        if args.context:
            engine.step([(0, np.ones(args.context, np.int64))])
        tokens_a_second(engine, 8)  # captures
    rounds = [{side: tokens_a_second(engine, args.n) for side, engine in sides.items()} for _ in range(args.rounds)]
    result = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "arguments": vars(args),
        "weight_bytes": {side: engine.weight_bytes for side, engine in sides.items()},
        "tokens_per_second": {side: statistics.median(one[side] for one in rounds) for side in sides},
        "rounds": rounds,
    }
    write_result(args.out, result)  # whatever comes of the parts
    parts = {side: parts_of_a_step(engine) for side, engine in sides.items()}
    result |= {**summary(rounds, parts), "seconds": parts}
    for side, engine in sides.items():
        shares = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in parts[side].items())
        print(
            f"{side:6} {result['tokens_per_second'][side]:7.1f} tokens/s, {engine.weight_bytes / 1e9:.2f} GB a token; "
            f"{shares}; outside {result['outside'][side]:.1%}"
        )
    print(f"ratio {result['ratio']['median']:.2f} (at least {WANTED['ratio']})")
    print(f"outside linears and attention {result['outside']['sparse']:.1%} (at most {WANTED['outside']:.0%})")
    print(write_result(args.out, result))


if __name__ == "__main__":
    main()
