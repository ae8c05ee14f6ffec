"""Pruning by size alone: it sees no inputs."""

from __future__ import annotations

import numpy as np

from ..linalg import Matrix
from ..masks import Target, keep_fraction, keep_pattern


def magnitude(weight: Matrix, target: Target) -> Matrix:
    """Drops the smallest absolute values, relative to their row and to their column, of the matrix or of each M inputs.

    What is compared is |w| / (sum of its row's |w|) + |w| / (sum of its column's |w|), the relative importance of
    Zhang et al. 2024, which spares whole outputs and inputs; plain |w| loses several times as much.

    Args:
        weight: [rows, cols].
        target: The zeros to make; an unstructured target compares over the whole matrix.

    Returns:
        The pruned matrix, [rows, cols].
    """
    size = np.abs(weight)
    scores = np.zeros_like(size)
    for axis in (0, 1):
        total = size.sum(axis, keepdims=True, dtype=np.float64).astype(np.float32)
        scores += np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    keep = keep_pattern(scores, target.pattern) if target.pattern else keep_fraction(scores, target.zeros(scores.size))
    return np.where(keep, weight, np.float32(0))
