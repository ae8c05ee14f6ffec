"""Sparse linears on a GPU beside dense ones: torch's GEMM (cuBLAS), and what else torch has for sparse weights.

    python bench/gpu_kernels.py                        shapes of Llama-2-7B and Llama-3-8B, M = 1..64
    python bench/gpu_kernels.py --shapes 11008x4096 --tokens 1 16 --rows 2:4

Every row runs over copies of the weight that together exceed the GPU's cache several times, all calls of a pass in one
CUDA graph; passes of ours and of the dense product take turns, and the ratio is the median of the passes' ratios. Every
weight's result is checked against float64; one that is off, or whatever a row dies of, is told in the row and by the
exit status, and the others go on. Peers that are absent, or refuse, are named with their reason. The results file is
written anew after every weight, so that a limit of time leaves what was measured.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result

from gossamer import _core
from gossamer.gpu.cuda import CudaWeight
from gossamer.pictures import legend_below, new_figure, plain_ticks, save_figure

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096), (4096, 14336))
TOKENS = (1, 4, 8, 16, 32, 64)
ROTATED = 160 << 20  # bytes of weights that a pass goes through, again and again
REPEATS = 8  # so that a pass is long beside the launch of its graph
PASSES = 15

# name, zeros or pattern, value type, group
ROWS: tuple[tuple[str, float | tuple[int, int], str, int], ...] = (
    ("bitmap 50% f16", 0.5, "f16", 0),
    ("bitmap 60% f16", 0.6, "f16", 0),
    ("bitmap 70% f16", 0.7, "f16", 0),
    ("bitmap 80% f16", 0.8, "f16", 0),
    ("bitmap 90% f16", 0.9, "f16", 0),
    ("bitmap 95% f16", 0.95, "f16", 0),
    ("bitmap 50% int8", 0.5, "int8", 0),
    ("bitmap 50% int4 g128", 0.5, "int4", 128),
    ("2:4 f16", (2, 4), "f16", 0),
    ("2:4 int8", (2, 4), "int8", 0),
    ("2:4 int4 g128", (2, 4), "int4", 128),
    ("16:32 f16", (16, 32), "f16", 0),
    ("1:4 f16", (1, 4), "f16", 0),
)

# what is promised: row, shapes, most tokens, ratio to dense f16
WANTED = (
    ("2:4 f16", ((11008, 4096), (14336, 4096)), 32, 1.6),
    ("bitmap 50% f16", ((11008, 4096), (14336, 4096)), 16, 1.4),
    ("bitmap 60% f16", ((11008, 4096), (14336, 4096)), 16, 1.6),
    ("bitmap 90% f16", ((11008, 4096), (14336, 4096)), 1, 3.0),
    ("bitmap 50% int8", ((11008, 4096), (14336, 4096)), 1, 2.4),
    ("2:4 int4 g128", ((11008, 4096), (14336, 4096)), 16, 3.5),
    ("16:32 f16", ((11008, 4096), (14336, 4096)), 16, 1.4),
)

Call = Callable[[torch.Tensor], torch.Tensor]


def packed(kind: float | tuple[int, int], type: str, group: int, rows: int, cols: int) -> _core.Weight:
    """Random weights with that share of zeros, or that pattern."""
    rng = np.random.default_rng([rows, cols])
    values = rng.standard_normal((rows, cols), np.float32)
    if isinstance(kind, float):
        values[rng.random((rows, cols), np.float32) < kind] = 0
        return _core.pack(values, "bitmap", type, group)
    kept, length = kind
    order = np.argsort(np.abs(values).reshape(rows, -1, length), axis=2)
    np.put_along_axis(values.reshape(rows, -1, length), order[:, :, : length - kept], 0, axis=2)
    return _core.pack(values, "nm", type, group, kind)


def check(weight: _core.Weight, gpu: CudaWeight) -> float:
    """The largest error over its bound (see tests/support/cuda_cases.py), with 4 and 64 tokens, of the first rows.

    More than 1, or NaN, is wrong.
    """
    stored, worst = weight.unpack()[:512].astype(np.float64), 0.0
    for tokens in (4, 64):
        x = torch.randn(tokens, weight.cols, device="cuda", dtype=torch.float16)
        y, given = gpu.linear(x)[:, :512].double().cpu().numpy(), x.double().cpu().numpy()
        exact = given @ stored.T
        depth = weight.cols / 16 + 3 * (weight.cols / 32) + 24
        bound = 1.01 * depth * 2.0**-23 * (np.abs(given) @ np.abs(stored).T) + 2.0**-11 * np.abs(exact) + 2.0**-25
        worst = float(np.maximum(worst, np.max(np.abs(y - exact) / bound)))  # NaN stays
    return worst


def graph_of(calls: list[Call], x: torch.Tensor) -> torch.cuda.CUDAGraph:
    """All calls, one after the other, as one graph."""
    for call in calls:  # warm up: handles, scratch
        call(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call(x)
    return graph


def seconds(graph: torch.cuda.CUDAGraph) -> float:
    """One replay by the GPU's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def compare(ours: list[Call], theirs: list[Call], x: torch.Tensor) -> dict[str, Any]:
    """Passes of both in turns: microseconds of a call, and the ratio."""
    graphs = [graph_of(calls * REPEATS, x) for calls in (ours, theirs)]
    for graph in graphs:
        seconds(graph)
    passes = [
        [seconds(graph) / (REPEATS * len(calls)) for graph, calls in zip(graphs, (ours, theirs), strict=True)]
        for _ in range(PASSES)
    ]
    ratios = [dense / sparse for sparse, dense in passes]
    return {
        "microseconds": statistics.median(sparse for sparse, _ in passes) * 1e6,
        "dense_microseconds": statistics.median(dense for _, dense in passes) * 1e6,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def copies(bytes_each: int) -> int:
    """Weights of so many bytes that a pass goes through."""
    return max(2, -(-ROTATED // bytes_each))


def roof() -> float:
    """Bytes a second of a long copy on the GPU, reads and writes counted."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    graph = graph_of([lambda _: target.copy_(source)], source)
    return 2 * source.numel() / statistics.median(seconds(graph) for _ in range(PASSES))


def peers(dense: torch.Tensor, pruned: torch.Tensor) -> dict[str, Callable[[], Call]]:
    """Other ways to multiply with the same weight, by name; each may fail when it is set up."""

    def semi_structured() -> Call:
        weight = torch.sparse.to_sparse_semi_structured(pruned)
        return lambda x: torch.nn.functional.linear(x, weight)

    def csr() -> Call:
        weight = pruned.to_sparse_csr()
        return lambda x: (weight @ x.T).T

    def torchao_int4() -> Call:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        module = torch.nn.Linear(dense.shape[1], dense.shape[0], bias=False, device="cuda", dtype=torch.bfloat16)
        quantize_(module, Int4WeightOnlyConfig(group_size=128))
        return lambda x: module(x.bfloat16())

    def bitsandbytes_int8() -> Call:
        import bitsandbytes

        module = bitsandbytes.nn.Linear8bitLt(dense.shape[1], dense.shape[0], bias=False, has_fp16_weights=False)
        on_gpu: Call = module.cuda()
        return on_gpu

    return {
        "torch semi-structured": semi_structured,
        "torch CSR": csr,
        "torchao int4": torchao_int4,
        "bitsandbytes int8": bitsandbytes_int8,
    }


def time_weight(
    name: str, weight: _core.Weight, theirs: list[Call], tokens: list[int], bandwidth: float
) -> list[dict[str, Any]]:
    """A weight at each number of tokens, beside the dense products of its shape."""
    first = CudaWeight(weight)
    worst = check(weight, first)
    ours: list[Call] = [first.linear]
    ours += [first.clone().linear for _ in range(copies(first.nbytes) - 1)]
    shape = {"row": name, "rows": weight.rows, "cols": weight.cols}
    found = []
    for count in tokens:
        x = torch.randn(count, weight.cols, device="cuda", dtype=torch.float16)
        row: dict[str, Any] = {**shape, "tokens": count, "bytes": first.nbytes, "layout": first.layout}
        row |= {"error_over_bound": worst, **compare(ours, theirs, x)}
        row["bandwidth"] = first.nbytes / row["microseconds"] * 1e6
        found.append(row)
        print(
            f"{name:22} {weight.rows:6}x{weight.cols:<6} M={count:<3} {row['microseconds']:8.1f} us "
            f"{row['bandwidth'] / bandwidth:5.0%} of the roof  {row['ratio']['median']:.2f} x dense",
            flush=True,
        )
    if not worst <= 1:
        found.append({**shape, "failed": f"off by {worst:.2f} bounds"})
    return found


def time_peers(rows: int, cols: int, tokens: int) -> list[dict[str, Any]]:
    """Each peer once at a shape, beside the dense product, on one weight a peer: they are not rotated."""
    dense = torch.randn(rows, cols, device="cuda", dtype=torch.float16)
    pruned = dense.view(rows, -1, 4).clone()
    pruned.scatter_(2, pruned.abs().argsort(2)[:, :, :2], 0)
    x = torch.randn(tokens, cols, device="cuda", dtype=torch.float16)
    found = []
    for name, make in peers(dense, pruned.view(rows, cols)).items():
        row: dict[str, Any] = {"peer": name, "rows": rows, "cols": cols, "tokens": tokens}
        try:
            row |= compare([make()], [lambda x: torch.nn.functional.linear(x, dense)], x)
        except Exception as error:  # whatever a peer dies of
            row["skipped"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        found.append(row)
    return found


def wanted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is promised, with the smallest ratio that was measured for it."""
    out = []
    for name, shapes, most, least in WANTED:
        found = [
            row["ratio"]["median"]
            for row in rows
            if row["row"] == name and (row["rows"], row["cols"]) in shapes and row["tokens"] <= most
        ]
        if found:
            out.append({"what": name, "tokens": f"1..{most}", "at_least": least, "smallest": min(found)})
    return out


def plot(rows: list[dict[str, Any]], bandwidth: float, path: Path) -> None:
    """Share of the GPU's bandwidth by number of tokens, one line a row of the largest shape."""
    largest = max((row["rows"], row["cols"]) for row in rows)
    figure = new_figure(path)
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["row"] for row in rows):
        points = [r for r in rows if r["row"] == name and (r["rows"], r["cols"]) == largest]
        axes.plot([p["tokens"] for p in points], [p["bandwidth"] / bandwidth for p in points], marker="o", label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        xscale="log", xlabel="tokens", ylabel="share of a copy's bytes a second", title=f"{largest[0]} x {largest[1]}"
    )
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    legend_below(figure, *axes.get_legend_handles_labels(), height=4.0)
    save_figure(figure, path)


def main() -> None:
    """Runs what the command line asks for and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=lambda t: tuple(map(int, t.split("x"))), default=SHAPES)
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--rows", default="", metavar="REGEX", help="rows to run")
    parser.add_argument("--out", default="gpu_kernels", help="name of the results file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw shares of the roof, too; needs matplotlib")
    args = parser.parse_args()
    bandwidth = roof()
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}: copies at {bandwidth / 1e9:.0f} GB/s")
    rows: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []

    def measured() -> list[dict[str, Any]]:
        return [row for row in rows if "failed" not in row]

    def write() -> str:
        result = {"gpu": gpu, "torch": torch.__version__, "bandwidth": bandwidth, "promised": wanted(measured())}
        return str(write_result(args.out, {**result, "rows": rows, "peers": others}))

    for shape in args.shapes:
        dense = [torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(copies(2 * shape[0] * shape[1]))]
        theirs: list[Call] = [lambda x, w=w: torch.nn.functional.linear(x, w) for w in dense]  # type: ignore[misc]
        chosen = [row for row in ROWS if re.search(args.rows, row[0])]
        # Packing takes seconds a weight on one core, and leaves Python's lock alone.
        with ThreadPoolExecutor() as pool:
            weights = list(pool.map(lambda row, shape=shape: packed(*row[1:], *shape), chosen))  # type: ignore[misc]
        for (name, *_), weight in zip(chosen, weights, strict=True):
            try:
                rows += time_weight(name, weight, theirs, args.tokens, bandwidth)
            except Exception as error:  # whatever a kernel dies of; where the GPU is lost, the rest says so, too
                why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                rows.append({"row": name, "rows": shape[0], "cols": shape[1], "failed": why})
            write()
    for tokens in (1, 16):
        others += time_peers(*args.shapes[-1], tokens)
    for row in others:
        print(f"{row['peer']:22} M={row['tokens']:<3} ", row.get("skipped") or f"{row['ratio']['median']:.2f} x dense")
    for row in wanted(measured()):
        print(f"{row['what']:22} M={row['tokens']}: {row['smallest']:.2f} (at least {row['at_least']})")
    failed = [row for row in rows if "failed" in row]
    for row in failed:
        print(f"{row['row']:22} {row['rows']:6}x{row['cols']:<6} FAILED: {row['failed']}")
    print(write())
    if args.plot:
        plot(measured(), bandwidth, args.plot)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
