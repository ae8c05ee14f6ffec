"""Pruning by size alone: it sees no inputs."""

from __future__ import annotations

import numpy as np

from ...importance import relative_magnitude
from ..linalg import Matrix
from ..masks import Target, keep_fraction, keep_pattern


def magnitude(weight: Matrix, target: Target) -> Matrix:
    """Drops the smallest absolute values, relative to their row and to their column, of the matrix or of each M inputs.

    Plain |w| loses several times as much.

    Args:
        weight: [rows, cols].
        target: The zeros to make; an unstructured target compares over the whole matrix.

    Returns:
        The pruned matrix, [rows, cols].
    """
    scores = relative_magnitude(weight)
    keep = keep_pattern(scores, target.pattern) if target.pattern else keep_fraction(scores, target.zeros(scores.size))
    return np.where(keep, weight, np.float32(0))
