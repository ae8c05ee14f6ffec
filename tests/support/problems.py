"""Matrices to prune, and how far pruned ones are off."""

from __future__ import annotations

from typing import Any

import numpy as np


def problem(rows: int, cols: int, tokens: int = 0, seed: int = 0) -> tuple[Any, Any, Any]:
    """Returns a weight, correlated inputs [tokens, cols] and their second moments."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, cols)).astype(np.float32)
    common = rng.standard_normal((tokens or 4 * cols, max(1, cols // 4)))
    x = common @ rng.standard_normal((common.shape[1], cols)) + 0.3 * rng.standard_normal((len(common), cols))
    x *= np.exp(rng.standard_normal(cols))
    return weight, x, x.T @ x


def error(weight: Any, pruned: Any, x: Any) -> float:
    return float(np.square(x @ (weight - pruned).T).sum() / np.square(x @ weight.T).sum())
