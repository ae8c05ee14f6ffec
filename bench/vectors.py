"""Vectors of texts beside torch: how near they are to those of `transformers`, and sentences a second.

    python bench/vectors.py                     # all-MiniLM-L6-v2, which is fetched
    python bench/vectors.py FOLDER --pooling mean

Sides are torch in float32, and packed models: dense f32 and int8, and int8 with half of the weights zero, pruned on
addresses of presidents. Sentences are of later addresses. Sides take turns, from texts to vectors at each number of
texts at once; the median of the rounds counts. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import torch
from common import ROOT, write_result
from numpy.typing import NDArray
from spoken import sentences
from whole_models import over, turns

import gossamer
from gossamer.pruning import prune
from gossamer.zoo.builtin import fetch

sys.path.insert(0, str(ROOT / "examples"))
import embeddings as example

Side = Callable[[Sequence[str]], NDArray[np.float32]]


def torch_side(folder: Path, threads: int) -> Side:
    """Means of the tokens by `transformers`, of length 1."""
    torch.set_num_threads(threads)
    model, read = example.minilm(folder)
    return lambda texts: example.embed(model, read(texts)).numpy()


def cosines(found: NDArray[np.float32], right: NDArray[np.float32]) -> dict[str, float]:
    """The least and the mean cosine of rows."""
    each = np.sum(found * right, axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(right, axis=1)
    return {"least_cosine": float(each.min()), "mean_cosine": float(each.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="another of its kind")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="texts at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="vectors", help="of the file of results")
    args = parser.parse_args()
    folder = args.model or fetch(example.MINILM)
    speeches = corpora.addresses(corpora.fetch()[1])
    texts = sentences([text for year, text in speeches if year > 2019])[: args.texts]
    with tempfile.TemporaryDirectory() as work:
        calibration, sparse = Path(work) / "text.txt", Path(work) / "sparse"
        calibration.write_text("\n\n".join(text for year, text in speeches if 1945 <= year <= 2019), encoding="utf-8")
        prune(folder, sparse, sparsity=0.5, calibration=calibration, length=128)
        rows: list[dict[str, Any]] = []
        load = partial(gossamer.load, threads=args.threads)
        models = {
            "dense f32": load(folder, weights="f32"),
            "dense int8": load(folder, weights="int8"),
            "50% int8": load(sparse, weights="int8"),
        }
    sides: dict[str, Side] = {"torch f32": torch_side(folder, args.threads)}
    sides |= {
        name: partial(lambda model, some: model.embed(some, pool="mean", normalize=True), model)
        for name, model in models.items()
    }
    right = np.concatenate([sides["torch f32"]([text]) for text in texts])
    near = {name: cosines(side(texts), right) for name, side in sides.items()}

    def seconds(side: Side, batch: int) -> float:
        start = time.perf_counter()
        for first in range(0, len(texts), batch):
            side(texts[first : first + batch])
        return time.perf_counter() - start

    for batch in args.batch:
        found = turns({name: partial(seconds, side, batch) for name, side in sides.items()}, args.rounds)
        for name in sides:
            row = {"side": name, "batch": batch, "per_second": len(texts) / statistics.median(found[name])}
            row |= {"over_torch": over(found["torch f32"], found[name]), **near[name]}
            rows.append(row)
            print("  ".join(f"{key} {value}" if isinstance(value, str) else f"{key} {value:.5g}" for key, value in
                            row.items()))  # fmt: skip
    print(write_result(args.name, {"texts": len(texts), "threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
