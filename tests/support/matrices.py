"""Seeded matrices with zeros anywhere, or n of every m."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sparse(rows: int, cols: int, zeros: float, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    values = random.uniform(0.5, 1.0, (rows, cols)).astype(np.float32)  # far from zero: rounding adds none
    values[random.random((rows, cols)) < zeros] = 0.0
    return values


def patterned(rows: int, cols: int, n: int, m: int, seed: int = 0) -> NDArray[np.float32]:
    """Exactly n of every m consecutive inputs are not zero."""
    random = np.random.default_rng(seed)
    order = random.random((rows, cols // m, m)).argsort(2).argsort(2)
    return (sparse(rows, cols, 0.0, seed).reshape(order.shape) * (order < n)).reshape(rows, cols)
