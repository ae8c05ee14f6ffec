"""Pruning column by column, with rounding in the same sweep."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..int4 import Int4
from ..linalg import Gram, Mask, Matrix, inverse_factor
from ..masks import Target, keep_fraction, keep_pattern
from .method import Method

_BLOCK = 128


def sparsegpt(
    weight: Matrix, gram: Gram, target: Target, present: Mask | None = None, rounding: Int4 | None = None
) -> Matrix:
    """Drops entries column by column; the columns to the right make up for each (Frantar & Alistarh 2023).

    The mask of an unstructured target is chosen for 128 columns at a time over all rows, that of an N:M target for one
    group of M at its first column, both on the weights as updated so far. With `rounding`, what stays is rounded in the
    same sweep, and the columns to the right make up for that as well (Frantar et al. 2022, GPTQ).

    Args:
        weight: [rows, cols].
        gram: Sum of x x^T over the calibration inputs, [cols, cols]; may be singular.
        target: The zeros to make.
        present: False where an entry has to be zero, [rows, cols]; any may stay by default.
        rounding: The integer values to round to; a group's scale is chosen when the sweep comes to it.

    Returns:
        The pruned matrix, [rows, cols].

    Raises:
        GossamerError: `gram` is not positive semidefinite, even with damping.
    """
    factor = inverse_factor(gram)
    # What dropping a weight of 1 costs; nothing where no input arrives.
    cost = np.where(np.diagonal(gram) > 0, np.diagonal(factor) ** -2, np.float32(0))[:, None]
    rows, cols = weight.shape
    # Transposed, so that a column of the weight is one contiguous row here.
    left = np.ascontiguousarray(weight.T)
    allowed = np.ones(left.shape, np.bool_) if present is None else np.ascontiguousarray(present.T)

    def scores(first: int, stop: int) -> Matrix:
        scored: Matrix = np.where(allowed[first:stop], np.square(left[first:stop]) * cost[first:stop], np.float32(-1))
        return scored

    done = 0
    block = _BLOCK
    if target.pattern:
        block = max(1, _BLOCK // target.pattern[1]) * target.pattern[1]
    scale = np.zeros(rows, np.float32)
    for start in range(0, cols, block):
        end = min(start + block, cols)
        keep = allowed[start:end].copy()
        if not target.pattern:
            zeros = max(target.zeros(rows * end) - done, int(keep.size - np.count_nonzero(keep)))
            keep = keep_fraction(scores(start, end), zeros)
            done += zeros
        errors = np.empty((end - start, rows), dtype=np.float32)
        for j in range(start, end):
            if target.pattern and j % target.pattern[1] == 0:
                stop = min(j + target.pattern[1], end)
                keep[j - start : stop - start] &= keep_pattern(scores(j, stop).T, target.pattern).T
            if rounding and j % rounding.span(cols) == 0:
                stop = min(j + rounding.span(cols), cols)
                stay = _likely(scores(j, stop), target)
                scale = rounding.scales((left[j:stop] * stay).T)
            kept = left[j] * keep[j - start]
            if rounding:
                kept = rounding.round(kept, scale)
            error = errors[j - start]
            np.subtract(left[j], kept, out=error)
            error /= factor[j, j]
            if j + 1 < end:
                left[j + 1 : end] -= np.multiply.outer(factor[j, j + 1 : end], error)
            left[j] = kept
        if end < cols:
            left[end:] -= factor[start:end, end:].T @ errors
    left += np.float32(0)  # no negative zeros
    return np.ascontiguousarray(left.T)


def _likely(scores: Matrix, target: Target) -> Mask:
    """What will stay of the inputs of a group, [cols, rows], as far as their present scores tell."""
    if target.pattern:
        keep = keep_pattern(scores.T, target.pattern).T
    else:
        keep = keep_fraction(scores, target.zeros(scores.size))
    likely: Mask = keep & (scores >= 0)
    return likely


def rounded(method: Method, rounding: Int4) -> Method:
    """Returns a method that also rounds what stays: SparseGPT in its own sweep, others in one behind it."""
    if method.solve is sparsegpt:
        return Method(partial(sparsegpt, rounding=rounding), updates=True)

    def solve(weight: Matrix, gram: Gram, target: Target, present: Mask) -> Matrix:
        pruned = method.solve(weight, gram, target, present)
        return sparsegpt(pruned, gram, Target(0.0), pruned != 0, rounding)

    return Method(solve, updates=True)


METHOD = Method(sparsegpt, updates=True)
