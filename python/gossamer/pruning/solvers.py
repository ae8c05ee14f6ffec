"""The pruning methods: one matrix and the second moments of its inputs in, the pruned matrix out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from .masks import Target, keep_fraction, keep_pattern, keep_rows

Matrix = NDArray[np.float32]
Gram = NDArray[np.float64]
Solver = Callable[[Matrix, Gram, Target], Matrix]

_BLOCK = 128
_DAMPING = 0.01


def magnitude(weight: Matrix, target: Target) -> Matrix:
    """Drops the smallest absolute values of the whole matrix, or of each group of M.

    Args:
        weight: [rows, cols].
        target: The zeros to make.

    Returns:
        The pruned matrix, [rows, cols].
    """
    scores = np.abs(weight)
    keep = keep_pattern(scores, target.pattern) if target.pattern else keep_fraction(scores, target.zeros(weight.size))
    return np.where(keep, weight, np.float32(0))


def wanda(weight: Matrix, gram: Gram, target: Target) -> Matrix:
    """Drops, in every row, the entries with the smallest |w| times the norm of their input (Sun et al. 2023).

    Args:
        weight: [rows, cols].
        gram: Sum of x x^T over the calibration inputs, [cols, cols]; the diagonal alone is used.
        target: The zeros to make; an unstructured target compares within a row.

    Returns:
        The pruned matrix, [rows, cols].
    """
    scores = np.abs(weight) * np.sqrt(np.diagonal(gram))
    keep = keep_pattern(scores, target.pattern) if target.pattern else keep_rows(scores, target.zeros(weight.shape[1]))
    return np.where(keep, weight, np.float32(0))


def sparsegpt(weight: Matrix, gram: Gram, target: Target) -> Matrix:
    """Drops entries column by column, and lets the columns to the right make up for each (Frantar & Alistarh 2023).

    The mask of an unstructured target is chosen for 128 columns at a time over all rows, that of an N:M target for one
    group of M at its first column, both on the weights as updated so far.

    Args:
        weight: [rows, cols].
        gram: Sum of x x^T over the calibration inputs, [cols, cols]; may be singular.
        target: The zeros to make.

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
    done = 0
    block = _BLOCK
    if target.pattern:
        block = max(1, _BLOCK // target.pattern[1]) * target.pattern[1]
    for start in range(0, cols, block):
        end = min(start + block, cols)
        if not target.pattern:
            scores = np.square(left[start:end]) * cost[start:end]
            zeros = target.zeros(rows * end) - done
            keep = keep_fraction(scores, zeros)
            done += zeros
        else:
            keep = np.ones((end - start, rows), dtype=np.bool_)
        errors = np.empty((end - start, rows), dtype=np.float32)
        for j in range(start, end):
            if target.pattern and j % target.pattern[1] == 0:
                stop = min(j + target.pattern[1], end)
                scores = np.square(left[j:stop]) * cost[j:stop]
                keep[j - start : stop - start] = keep_pattern(scores.T, target.pattern).T
            error = errors[j - start]
            np.divide(left[j], factor[j, j], out=error)
            error[keep[j - start]] = 0
            if j + 1 < end:
                left[j + 1 : end] -= np.multiply.outer(factor[j, j + 1 : end], error)
            left[j] *= keep[j - start]
        if end < cols:
            left[end:] -= factor[start:end, end:].T @ errors
    left += np.float32(0)  # no negative zeros
    return np.ascontiguousarray(left.T)


def inverse_factor(gram: Gram) -> Matrix:
    """Returns the upper triangular U with U^T U = (gram / mean + 1%)^-1, float32 [cols, cols].

    The mean is that of the diagonal, as the scale of U is of no consequence to pruning; 1% is the damping, which gives
    singular moments an inverse.

    Raises:
        GossamerError: `gram` is not positive semidefinite, even with damping.
    """
    scale = float(np.diagonal(gram).mean()) or 1.0
    damped = gram / scale + _DAMPING * np.eye(len(gram))
    try:
        # gram = L L^T reversed on both axes gives the factor of the inverse without forming the inverse:
        # with J the reversal, J gram J = L L^T, so gram^-1 = (J L^-T J)(J L^-1 J), and J L^-1 J is upper triangular.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise GossamerError("second moments of the inputs are not positive semidefinite") from None
    inverse = np.linalg.solve(lower, np.eye(len(lower)))
    return np.triu(inverse[::-1, ::-1]).astype(np.float32)


# The methods that look at the inputs of a matrix; `magnitude` does not.
CALIBRATED: dict[str, Solver] = {"wanda": wanda, "sparsegpt": sparsegpt}
METHODS = ("magnitude", *CALIBRATED)
