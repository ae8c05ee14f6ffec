"""Whole models, sparse beside dense of the same value type, in one sitting: sides take turns, and the ratio counts.

    python bench/whole_models.py zeros                  # decoding, sparse over dense
    python bench/whole_models.py formats                # --format auto beside every single format
    python bench/whole_models.py batch                  # a step of 4, 8 and 16 tokens over one of one
    python bench/whole_models.py prompts                # prompts of 512, 2048 and 8000 tokens

Weights are random, in the shape of real models; zeros lie at random places in the matrices of the blocks. Run it on an
idle machine; GOSSAMER_ISA forces a lower tier, and --name gives its results a file of their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import write_result

from gossamer import GossamerError, Model
from gossamer.formats import FORMATS
from gossamer.zoo import synthetic

CONTEXT = 64
SEVEN, SEVEN_CUT, ONE, SMALL = "llama-2-7b", "llama-2-7b of 12 layers", "llama-3.2-1b", "smollm2-135m"

# model, type of the blocks, type of the head, what is asked of each sparsity or pattern over dense
ZEROS: tuple[tuple[str, str, str, dict[str, float]], ...] = (
    (SMALL, "int4", "int8", {"0.5": 1.0, "0.75": 1.12}),
    (SMALL, "int8", "int8", {"0.5": 1.0, "0.75": 1.0}),
    (ONE, "int4", "int4", {"0.5": 1.0, "0.75": 1.4}),
    (ONE, "int8", "int8", {"0.5": 1.0, "0.75": 1.0, "2:4": 1.0}),
    (SEVEN, "int4", "int8", {"0.5": 1.2, "0.75": 1.5}),
    (SEVEN, "int8", "int8", {"0.5": 1.45, "0.75": 2.1, "2:4": 1.3}),
)


def made(name: str, zeros: str, **options: Any) -> Model:
    """A model whose blocks have some fraction of zeros, or a pattern such as 2:4."""
    if name == SEVEN_CUT:
        synthetic.CONFIGS.setdefault(name, {**synthetic.config(SEVEN), "num_hidden_layers": 12})
    if ":" in zeros:
        kept, of = map(int, zeros.split(":"))
        return synthetic.model(name, pattern=(kept, of), **options)
    return synthetic.model(name, sparsity=float(zeros), **options)


def step_seconds(model: Model, tokens: int, least: float) -> float:
    """The median of steps of some tokens behind a short context, for at least some seconds."""
    decoder = model.decoder
    ids = np.arange(100, 100 + tokens, dtype=np.int32)
    if decoder.length(0) == 0:
        decoder.step([(0, np.arange(CONTEXT, dtype=np.int32) + 100)])
    seconds: list[float] = []
    while sum(seconds) < least or len(seconds) < 5:
        start = time.perf_counter()
        decoder.step([(0, ids)])
        seconds.append(time.perf_counter() - start)
        decoder.rollback(0, tokens)
    return statistics.median(seconds)


def prompt_seconds(model: Model, tokens: int) -> float:
    """One prompt."""
    ids = np.arange(tokens, dtype=np.int32) % 40000
    start = time.perf_counter()
    model.decoder.step([(1, ids)])
    seconds = time.perf_counter() - start
    model.decoder.free(1)
    return seconds


def turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side; they take turns, back and forth. The first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            seconds = sides[name]()
            if turn:
                found[name].append(seconds)
    return found


def over(base: list[float], other: list[float]) -> float:
    """How many times as fast as the base, the median of the rounds."""
    return statistics.median(a / b for a, b in zip(base, other, strict=True))


def zeros_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Decoding, sparse over dense."""
    rows = []
    for name, kind, head, asked in ZEROS:
        if args.models and name not in args.models:
            continue
        dense = made(name, "0", weights=kind, head=head)
        for zeros, least in asked.items():
            sparse = made(name, zeros, weights=kind, head=head)
            sides = {"dense": dense, "sparse": sparse}
            found = turns(
                {side: partial(step_seconds, model, 1, args.seconds) for side, model in sides.items()},
                args.rounds,
            )
            row = {"model": name, "weights": kind, "head": head, "zeros": zeros, "asked": least}
            row |= {"speedup": over(found["dense"], found["sparse"]), "formats": formats_of(sparse)}
            row["bytes_allow"] = dense.decoder.weight_bytes / sparse.decoder.weight_bytes
            row["tokens_per_second"] = {side: 1 / statistics.median(values) for side, values in found.items()}
            rows.append(told(row | {"seconds": found}))
    return rows


def formats_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """`auto` beside every single format."""
    rows = []
    for name in args.models or (SMALL, ONE, SEVEN_CUT):
        for kind in ("int8", "int4"):
            for zeros in ("0.3", "0.5", "0.75", "0.9"):
                models = {"auto": made(name, zeros, weights=kind)}
                for format in FORMATS:
                    if format == "nm":
                        continue  # random zeros have no pattern
                    models[format] = made(name, zeros, weights=kind, format=format)
                found = turns(
                    {side: partial(step_seconds, model, 1, args.seconds) for side, model in models.items()},
                    args.rounds,
                )
                medians = {side: statistics.median(values) for side, values in found.items()}
                best = min((side for side in medians if side != "auto"), key=lambda side: medians[side])
                row = {"model": name, "weights": kind, "zeros": zeros, "best": best, "auto": formats_of(models["auto"])}
                row["auto_over_best"] = over(found[best], found["auto"])
                rows.append(told(row | {"tokens_per_second": {side: 1 / value for side, value in medians.items()}}))
    return rows


def batch_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A step of several tokens over one of one."""
    rows = []
    for kind, zeros in (("int8", "0"), ("int8", "0.75"), ("int4", "0"), ("int4", "0.5")):
        model = made(args.models[0] if args.models else ONE, zeros, weights=kind)
        sides = {str(count): partial(step_seconds, model, count, args.seconds) for count in (1, 4, 8, 16)}
        found = turns(sides, args.rounds)
        row: dict[str, Any] = {"weights": kind, "zeros": zeros, "formats": formats_of(model)}
        row["cost"] = {count: 1 / over(found["1"], found[count]) for count in found}
        rows.append(told(row | {"seconds": found}))
    return rows


def prompts_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Prompts of SmolLM2's shape, dense int8, by type of the KV cache."""
    rows = []
    models = {kv: made(SMALL, "0", weights="int8", kv=kv) for kv in args.kv}
    for tokens in args.tokens:
        sides = {kv: partial(prompt_seconds, model, tokens) for kv, model in models.items()}
        found = turns(sides, args.rounds)
        row: dict[str, Any] = {"tokens": tokens}
        row["tokens_per_second"] = {kv: tokens / statistics.median(seconds) for kv, seconds in found.items()}
        row["speedup"] = {kv: over(found[args.kv[0]], seconds) for kv, seconds in found.items()}
        rows.append(told(row | {"seconds": found}))
    return rows


def formats_of(model: Model) -> list[str]:
    """The formats of the blocks' matrices."""
    return sorted({weight.format for name, weight in model.weights.items() if "." in name})


def told(row: dict[str, Any]) -> dict[str, Any]:
    """Prints a row without its single seconds."""
    print({key: value for key, value in row.items() if key != "seconds"}, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"zeros": zeros_rows, "formats": formats_rows, "batch": batch_rows, "prompts": prompts_rows}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these shapes only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kv", nargs="+", default=("f32", "f16", "bf16"), help="of prompts; the first is the base")
    parser.add_argument("--tokens", nargs="+", type=int, default=(512, 2048, 8000), help="of prompts")
    parser.add_argument("--seconds", type=float, default=0.4, help="of steps, each side and round")
    parser.add_argument("--name", help="of the results file (default: whole_models_KIND)")
    args = parser.parse_args()
    try:
        rows = kinds[args.kind](args)
    except GossamerError as error:
        raise SystemExit(f"whole_models: {error}") from None
    print(write_result(args.name or f"whole_models_{args.kind}", {"rows": rows}))


if __name__ == "__main__":
    main()
