"""Long contexts: how fast keys and values are read, and what a narrower cache gains by depth, in one sitting.

    python bench/long_context.py attention              # attention alone, beside the measured bandwidth
    python bench/long_context.py depth                  # tokens a second of SmolLM2's shape by depth
    python bench/long_context.py quality MODEL TEXT     # perplexity of each type of the cache over that of f32

Types of the cache take turns, and ratios count, the medians of the rounds. Attention alone is what a step of a model of
narrow linears takes behind a long context beyond what it takes behind a short one. Run it on an idle machine;
GOSSAMER_ISA forces a lower tier, and --name gives its results a file of their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from whole_models import SMALL, over, turns

from gossamer import _core, load
from gossamer.arch.spec import Attention, Block, Branch, Embedding, Head, Mlp, Norm, Stack, Transformer
from gossamer.generation.perplexity import perplexity
from gossamer.zoo import synthetic

SHORT = 64
READ_BYTES = 256 << 20

# heads, KV heads, width, layers: SmolLM2-135M's, and half of Llama-3.2-1B's layers
SHAPES = ((9, 3, 64, 30), (32, 8, 64, 8))


def narrow(shape: tuple[int, int, int, int], kv: str, context: int, threads: int) -> Any:
    """A decoder that does little beside attention."""
    heads, kv_heads, width, layers = shape
    block = Block((Branch(Attention(heads, kv_heads, width, width**-0.5, None), None), Branch(Mlp(64, "silu"), None)))
    stack = Stack((block,), (0,) * layers, Norm("rms", 1e-5))
    config = Transformer(64, 128, context + 64, Embedding(), stack, Head(True))
    rng = np.random.default_rng(0)
    weights = {
        name: _core.pack((rng.standard_normal(size) / 8).astype(np.float32), "dense", "int8")
        for name, size in config.weights.items()
    }
    vectors = {name: np.ones(size, np.float32) for name, size in config.vectors.items()}
    return _core.Decoder(config.to_dict(), weights, vectors, kv=kv, threads=threads)


def deepen(decoder: Any, depth: int) -> None:
    """Brings a text to so many tokens."""
    have = decoder.length(0)
    if have > depth:
        decoder.rollback(0, have - depth)
    elif have < depth:
        decoder.step([(0, np.arange(have, depth, dtype=np.int32) % 100)])


def step_seconds(decoder: Any, depth: int, steps: int) -> float:
    """The median of steps of a token that is the `depth`-th."""
    deepen(decoder, depth - 1)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        decoder.step([(0, np.array([1], np.int32))])
        seconds.append(time.perf_counter() - start)
        decoder.rollback(0, 1)
    return statistics.median(seconds)


def attention_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The share of the measured bandwidth that keys and values are read at."""
    rows = []
    for shape in SHAPES:
        deep, shallow = ({kv: narrow(shape, kv, args.context, args.threads) for kv in args.kv} for _ in range(2))
        sides = {kv: partial(step_seconds, decoder, args.context, args.steps) for kv, decoder in deep.items()}
        sides |= {f"{kv} short": partial(step_seconds, decoder, SHORT, args.steps) for kv, decoder in shallow.items()}
        sides["reads"] = partial(read_seconds, args.threads)
        found = turns(sides, args.rounds)
        for kv, decoder in deep.items():
            size = decoder.kv_bytes_read(args.context) - decoder.kv_bytes_read(SHORT)
            rounds = zip(found[kv], found[f"{kv} short"], found["reads"], strict=True)
            rates = [(size / (long - short), READ_BYTES / read) for long, short, read in rounds]
            row = {"shape": shape, "kv": kv, "bytes": size}
            row["share"] = statistics.median(rate / bandwidth for rate, bandwidth in rates)
            row["gigabytes_per_second"] = statistics.median(rate for rate, _ in rates) / 1e9
            row["bandwidth"] = statistics.median(bandwidth for _, bandwidth in rates) / 1e9
            rows.append(told(row))
    return rows


def read_seconds(threads: int) -> float:
    """Reading plain memory."""
    return float(np.median(_core.read_bandwidth(READ_BYTES, threads, True, 7)[1:]))


def depth_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Decoding of SmolLM2's shape, dense, by depth and type of the cache."""
    rows = []
    for weights in ("int8", "int4"):
        models = {kv: synthetic.model(SMALL, weights=weights, kv=kv, threads=args.threads) for kv in args.kv}
        for depth in sorted(args.depths, reverse=True):  # the text is filled once, and rolled back from there
            sides = {kv: partial(step_seconds, model.decoder, depth, args.steps) for kv, model in models.items()}
            found = turns(sides, args.rounds)
            sizes = {kv: m.decoder.weight_bytes + m.decoder.kv_bytes_read(depth) for kv, m in models.items()}
            base = args.kv[0]
            row: dict[str, Any] = {"weights": weights, "depth": depth, "bytes": sizes}
            row["tokens_per_second"] = {kv: 1 / statistics.median(seconds) for kv, seconds in found.items()}
            row[f"over_{base}"] = {kv: over(found[base], seconds) for kv, seconds in found.items()}
            row["bytes_allow"] = {kv: sizes[base] / size for kv, size in sizes.items()}
            rows.append(told(row))
    return rows


def quality_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Perplexity of each type of the cache."""
    text = args.text.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for kv in ("f32", *args.kv):
        model = load(args.model, kv=kv, threads=args.threads)
        found = perplexity(model, text, context=args.window, max_windows=args.windows)
        row = {"model": Path(args.model).name, "kv": kv, "perplexity": found.ppl, "tokens": found.tokens}
        rows.append(told(row | {"over_f32": found.ppl / rows[0]["perplexity"] if rows else 1.0}))
    return rows


def told(row: dict[str, Any]) -> dict[str, Any]:
    print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv", nargs="+", default=["f16", "bf16", "int8"], help="types; the first is the base")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--name", help="of the file of results (long_context, with what is measured behind it)")
    parts = parser.add_subparsers(dest="part", required=True)
    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument("--rounds", type=int, default=7)
    timed.add_argument("--steps", type=int, default=9, help="steps of a side in a round")
    attention = parts.add_parser("attention", parents=[timed])
    attention.add_argument("--context", type=int, default=4096)
    attention.set_defaults(run=attention_rows)
    depth = parts.add_parser("depth", parents=[timed])
    depth.add_argument("--depths", nargs="+", type=int, default=[512, 2048, 4096, 8000])
    depth.set_defaults(run=depth_rows)
    quality = parts.add_parser("quality")
    quality.add_argument("model")
    quality.add_argument("text", type=Path)
    quality.add_argument("--window", type=int, default=2048)
    quality.add_argument("--windows", type=int, default=8)
    quality.set_defaults(run=quality_rows)
    args = parser.parse_args()
    args.threads = args.threads or _core.default_threads()
    rows = args.run(args)
    print(write_result(args.name or f"long_context_{args.part}", {"rows": rows}))


if __name__ == "__main__":
    main()
