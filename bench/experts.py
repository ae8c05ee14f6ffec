"""Experts: a token reads those that it is routed to and no others, and its speed follows the bytes.

    python bench/experts.py

A model in the shape of Mixtral-8x7B with 4 layers and random weights decodes with 1, 2 and 4 of its 8 experts chosen a
token: the same weights, and the same routers. The configurations take turns. `follows` is a configuration's tokens/s
times its bytes a token, over those of the first: 1 where speed follows the bytes exactly; the promise is 0.85 to 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
from common import write_result

from gossamer import _core
from gossamer.arch.spec import Experts, Transformer
from gossamer.generation.ready import ready
from gossamer.packing.folder import PackedModel
from gossamer.zoo import synthetic

CHOSEN = (2, 1, 4)
CONTEXT = 64


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="int8", help="type of the values (%(default)s)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of zeros (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each takes (%(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=_core.default_threads(), help="(%(default)s)")
    args = parser.parse_args()
    name = "mixtral-4-layers"
    packed = synthetic.pack(name, sparsity=args.sparsity, weights=args.weights)
    # The weights are shared; each has its own decoder over them.
    decoders = {count: ready(_choosing(packed, count), threads=args.threads).decoder for count in CHOSEN}
    prompt = np.random.default_rng(0).integers(0, packed.config.vocab, CONTEXT + args.tokens).astype(np.int32)
    rates: dict[int, list[float]] = {count: [] for count in CHOSEN}
    for decoder in decoders.values():
        decoder.step([(0, prompt[:CONTEXT])])
    for _ in range(args.rounds):
        for count, decoder in decoders.items():
            start = time.perf_counter()
            for token in prompt[CONTEXT:]:  # not what it would choose, so that all configurations get the same
                decoder.step([(0, np.array([token], np.int32))])
            rates[count].append(args.tokens / (time.perf_counter() - start))
            decoder.rollback(0, args.tokens)
    rows = [_row(count, decoders[count].weight_bytes, rates[count]) for count in CHOSEN]
    for row in rows:
        row["follows"] = row["bytes_per_second"] / rows[0]["bytes_per_second"]
        print(
            f"{row['chosen']} of 8 chosen: {row['bytes_per_token'] / 1e6:7.1f} MB a token, "
            f"{row['tokens_per_second']:6.2f} tokens/s (± {row['deviation']:.2f}), follows {row['follows']:.3f}"
        )
    setting = {"model": name, "weights": args.weights, "sparsity": args.sparsity, "threads": args.threads}
    path = write_result("experts", {**setting, "context": CONTEXT, "tokens": args.tokens, "rows": rows})
    print(f"written: {path}")


def _row(chosen: int, size: int, rates: list[float]) -> dict[str, Any]:
    speed = statistics.median(rates)
    return {
        "chosen": chosen,
        "bytes_per_token": size,
        "tokens_per_second": speed,
        "deviation": statistics.pstdev(rates),
        "bytes_per_second": speed * size,
        "rates": rates,
    }


def _choosing(packed: PackedModel, count: int) -> PackedModel:
    """The same model with so many experts chosen a token."""
    return replace(packed, config=_with_chosen(packed.config, count))


def _with_chosen(config: Transformer, count: int) -> Transformer:
    kinds = tuple(
        replace(
            block,
            branches=tuple(
                replace(branch, mixer=replace(branch.mixer, chosen=count))
                if isinstance(branch.mixer, Experts)
                else branch
                for branch in block.branches
            ),
        )
        for block in config.stack.kinds
    )
    return replace(config, stack=replace(config.stack, kinds=kinds))


if __name__ == "__main__":
    main()
