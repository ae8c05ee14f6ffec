"""What adapters cost: decode steps with and without them, side by side in one model, and how long a switch takes.

    python bench/adapters.py

The model has the shape of SmolLM2-135M and random int8 weights, dense. Beside it come: low-rank factors of rank 16 at
all linears of the blocks, as bf16; the same with half of the ranks shut by gates; two sets of differences, one value in
twenty each, alone and together; and, as models of their own, half zeros in one matrix and three quarters of zeros in
each of two parallel ones. Steps of all take turns; medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

from gossamer import _core, arch
from gossamer.checkpoints.branches import delta_name
from gossamer.checkpoints.lora import CONFIG, PREFIX, WEIGHTS, A, B
from gossamer.generation.model import Model
from gossamer.generation.ready import ready
from gossamer.safetensors_io import SafetensorsWriter
from gossamer.zoo import synthetic

SHAPE = "smollm2-135m"
RANK, SHARE = 16, 0.05
CONTEXT, STEPS = 64, 20


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The stored linears of the blocks."""
    sources = arch.family(model.info["config"]).sources(model.info["config"])
    return {
        source.tensor: source.shape
        for name, source in sources.items()
        if name.startswith("layers.") and len(source.shape) == 2
    }


def write_lora(folder: Path, stored: dict[str, tuple[int, ...]], kept: int) -> None:
    """Factors of which the first so many ranks are open."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (rows, cols) in stored.items():
        module = PREFIX + name.removesuffix(".weight")
        tensors[module + A] = (rng.standard_normal((RANK, cols)) / np.sqrt(cols)).astype(np.float32)
        tensors[module + B] = (rng.standard_normal((rows, RANK)) / 16).astype(np.float32)
        tensors[f"{module}.lora_gate"] = (np.arange(RANK) < kept).astype(np.float32)
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}), encoding="utf-8")
    with SafetensorsWriter(folder / WEIGHTS, tensors, alignment=4) as writer:
        for name, values in tensors.items():
            writer.add(name, values)


def write_differences(path: Path, stored: dict[str, tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    with SafetensorsWriter(path, stored, alignment=4) as writer:
        for name, shape in stored.items():
            values = np.where(rng.random(shape, np.float32) < SHARE, rng.standard_normal(shape, np.float32) / 16, 0)
            writer.add(name, values.astype(np.float32))


def with_adapters(folder: Path, threads: int) -> tuple[Model, dict[str, Any]]:
    """The model with all of them loaded, and the seconds that loading each took."""
    model = ready(synthetic.pack(SHAPE, sparsity=0.0, weights="int8", format="dense"), threads=threads)
    stored = shapes(model)
    write_lora(folder / "lora", stored, RANK)
    write_lora(folder / "sora", stored, RANK // 2)
    for seed, name in enumerate(("language.safetensors", "task.safetensors")):
        write_differences(folder / name, stored, seed)
    seconds = {}
    for name in ("lora", "sora", "language.safetensors", "task.safetensors"):
        start = time.perf_counter()
        model.adapters.load(folder / name, Path(name).stem)
        seconds[Path(name).stem] = time.perf_counter() - start
    return model, seconds


def parallel(threads: int) -> tuple[Model, Model]:
    """Half zeros in one matrix, and three quarters of zeros in each of two."""
    one = ready(synthetic.pack(SHAPE, sparsity=0.5, weights="int8"), threads=threads)
    two = synthetic.pack(SHAPE, sparsity=0.75, weights="int8")
    other = synthetic.pack(SHAPE, sparsity=0.75, weights="int8", seed=1)
    two.weights.update(
        (delta_name(name, 1), weight) for name, weight in other.weights.items() if name.startswith("layers.")
    )
    return one, ready(two, threads=threads)


def start(model: Model, seq: int, chosen: Any) -> Callable[[], float]:
    """Begins a sequence; returns what steps it by a token that is taken back, and gives the median seconds."""
    model.decoder.free(seq)
    model.adapters.choose(seq, chosen)
    model.decoder.step([(seq, np.arange(CONTEXT, dtype=np.int32) + 100)])
    one = np.array([100], np.int32)

    def run() -> float:
        steps = []
        for _ in range(STEPS):
            begun = time.perf_counter()
            model.decoder.step([(seq, one)])
            steps.append(time.perf_counter() - begun)
            model.decoder.rollback(seq, 1)
        return statistics.median(steps)

    return run


def switches(model: Model, count: int = 100) -> float:
    """The most seconds that another choice took, until the engine had it."""
    took = []
    for number in range(count):
        begun = time.perf_counter()
        model.adapters.set("lora" if number % 2 else {"task": 0.5, "language": 1.0})
        model.adapters.choose(1000)
        took.append(time.perf_counter() - begun)
        model.decoder.free(1000)
    return max(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="turns that each takes (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=_core.default_threads(), help="(%(default)s)")
    parser.add_argument("--no-parallel", action="store_true", help="leave the models of parallel branches out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, loading = with_adapters(Path(folder), args.threads)
    mixes: dict[str, Any] = {
        "base": {},
        "lora": "lora",
        "sora": "sora",
        "task": "task",
        "language + task": ["language", "task"],
    }
    extra = {name: model.adapters.bytes(model.mix(chosen)) for name, chosen in mixes.items()}
    runs = {name: (start(model, seq, chosen)) for seq, (name, chosen) in enumerate(mixes.items())}
    read = {name: model.decoder.weight_bytes + more for name, more in extra.items()}
    if not args.no_parallel:
        for name, other in zip(("one matrix", "two parallel"), parallel(args.threads), strict=True):
            runs[name], read[name] = start(other, 0, {}), other.decoder.weight_bytes
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    rows = []
    for name, times in seconds.items():
        beside = "one matrix" if name in ("one matrix", "two parallel") else "base"
        median = statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(times, seconds[beside], strict=True))
        rows.append(
            {"what": name, "seconds": median, "tokens_per_second": 1 / median, "time_over": beside, "ratio": ratio}
            | {"bytes_per_token": read[name], "turns": times}
        )
        print(f"{name}: {1e3 * median:.3f} ms, {1 / median:.1f} tokens/s, {read[name] / 1e6:.1f} MB, {ratio:.3f} x")
    switch = switches(model)
    print(f"switching: at most {1e3 * switch:.3f} ms; loading: {loading} s")
    options = {"shape": SHAPE, "rank": RANK, "share": SHARE, "context": CONTEXT, "threads": args.threads}
    result = {**options, "rows": rows, "switch_seconds": switch, "load_seconds": loading}
    print(f"written: {write_result('adapters', result)}")


if __name__ == "__main__":
    main()
