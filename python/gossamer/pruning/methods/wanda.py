"""Pruning by weights and activations."""

from __future__ import annotations

import numpy as np

from ..linalg import Gram, Mask, Matrix
from ..masks import Target, keep_even_rows, keep_pattern
from .method import Method


def wanda(weight: Matrix, gram: Gram, target: Target, present: Mask | None = None) -> Matrix:
    """Drops, in every row, the entries with the smallest |w| times the norm of their input (Sun et al. 2023).

    Args:
        weight: [rows, cols].
        gram: Sum of x x^T over the calibration inputs, [cols, cols]; the diagonal alone is used.
        target: The zeros to make; an unstructured target compares within a row; rows lose as many, give or take
            one.
        present: False where an entry has to be zero, [rows, cols]; any may stay by default.

    Returns:
        The pruned matrix, [rows, cols].
    """
    weight = weight if present is None else np.where(present, weight, np.float32(0))
    return keep_important(weight, importance(weight, np.diagonal(gram)), target)


def importance(weight: Matrix, squares: Gram) -> Matrix:
    """Returns the scores of Wanda: |w| times the norm of its input, [rows, cols].

    Args:
        weight: [rows, cols].
        squares: Sum of the squares of each input over the calibration tokens, [cols].
    """
    return np.abs(weight) * np.sqrt(squares).astype(np.float32)


def keep_important(weight: Matrix, scores: Matrix, target: Target) -> Matrix:
    """Drops the entries of a weight [rows, cols] with the lowest scores; rows lose as many, give or take one."""
    keep = keep_pattern(scores, target.pattern) if target.pattern else keep_even_rows(scores, target.zeros(weight.size))
    return np.where(keep, weight, np.float32(0))


METHOD = Method(wanda, updates=False)
