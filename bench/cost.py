"""What steps cost, predicted beside measured: m tokens of one text at context c.

    python bench/cost.py                               # SmolLM2's shape and Llama 3.2 1B's
    python bench/cost.py --models smollm2-135m --contexts 128 1024

Each model's steps are measured as `gossamer generate` does it the first time, and then timed at numbers of tokens and
contexts of which most are others; what counts is the median of the errors. Weights are random, in the shape of real
models. Run it on an idle machine; GOSSAMER_ISA forces a lower tier, and --name gives its results a file of their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from common import write_result
from whole_models import ONE, SMALL

from gossamer import Model
from gossamer.generation.cost_measured import measure
from gossamer.zoo import synthetic

ASKED = 0.1  # median error

MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    (SMALL, {"weights": "int8", "sparsity": 0.5}),
    (SMALL, {"weights": "int4", "sparsity": 0.0}),
    (ONE, {"weights": "int8", "sparsity": 0.0}),
    (ONE, {"weights": "int4", "sparsity": 0.0}),
    (ONE, {"weights": "int4", "sparsity": 0.5}),
)


def step_seconds(model: Model, tokens: int, least: float) -> float:
    """The median of steps of some tokens, as drafts run them."""
    ids = (100 + np.arange(tokens) * 41) % model.config.vocab
    seconds: list[float] = []
    while sum(seconds) < least or len(seconds) < 5:
        start = time.perf_counter()
        model.decoder.step([(0, ids)], all_logits=True)
        seconds.append(time.perf_counter() - start)
        model.decoder.rollback(0, tokens)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=(SMALL, ONE))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 3, 5, 7, 8, 11, 16])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--seconds", type=float, default=0.3, help="least time of each median")
    parser.add_argument("--kv", default="f32")
    parser.add_argument("--name", default="cost", help="of the file of results")
    args = parser.parse_args()
    rows = []
    for name, options in MODELS:
        if args.models and name not in args.models:
            continue
        model = synthetic.model(name, kv=args.kv, **options)
        start = time.perf_counter()
        measure(model, again=True)
        took = time.perf_counter() - start
        assert model.cost is not None
        cells = []
        for context in sorted(args.contexts):
            held = model.decoder.length(0)
            model.decoder.step([(0, (100 + np.arange(held, context) * 37) % model.config.vocab)])
            for tokens in args.tokens:
                found = step_seconds(model, tokens, args.seconds)
                predicted = model.cost.predict([tokens], [context])
                cell = {"tokens": tokens, "context": context, "seconds": found, "predicted": predicted._asdict()}
                cells.append({**cell, "error": predicted.total / found - 1})
        errors = [abs(cell["error"]) for cell in cells]
        row = {"model": name, **options, "kv": args.kv, "asked": ASKED, "measuring_seconds": took}
        row |= {"median_error": statistics.median(errors), "worst_error": max(errors), "steps": cells}
        print(
            f"{name} {options}: median error {row['median_error']:.1%}, worst {row['worst_error']:.1%}; "
            f"measured in {took:.1f} s",
            flush=True,
        )
        for cell in cells:
            print(
                f"  {cell['tokens']:2} tokens at {cell['context']:4}: {1e3 * cell['seconds']:7.2f} ms, "
                f"{1e3 * sum(cell['predicted'].values()):7.2f} predicted, {cell['error']:+.1%}"
            )
        rows.append(row)
        del model
    print(write_result(args.name, {"setup": {"seconds": args.seconds}, "rows": rows}))


if __name__ == "__main__":
    main()
