"""The pruning methods: one matrix and the second moments of its inputs in, the pruned matrix out.

An entry that is zero in the checkpoint stays zero: those that see inputs are told with `present`, and to `magnitude`
it has the lowest score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.low_rank import LowRank
from ..errors import GossamerError
from .masks import Target, keep_even_rows, keep_fraction, keep_pattern

Matrix = NDArray[np.float32]
Gram = NDArray[np.float64]
Mask = NDArray[np.bool_]
Number = TypeVar("Number", np.float32, np.float64)
Solver = Callable[[Matrix, Gram, Target, Mask], Matrix]

_BLOCK = 128
_DAMPING = 0.01
_SMALL = 64  # inverted as a general matrix
# Of `admm`: how strongly the two copies pull at each other, the steps, those until the mask is final.
_STRENGTH = np.float32(0.6)
_STEPS = 13
_MASK_STEPS = 9
_SCORES = 1 << 16  # looked at for a mask that is not final
# Of `low_rank`: directions beside those asked for, and how often they are turned towards the leading ones.
_SPARE = 8
_TURNS = 4
# Of `sparse_plus_low_rank`: how often each part is fitted to what the other leaves.
_ROUNDS = 8


@dataclass(frozen=True)
class Method:
    """A method that looks at the inputs of a matrix.

    Attributes:
        solve: What it does to a matrix: weight [rows, cols], gram [cols, cols], target, present [rows, cols].
        updates: Whether it changes the values that it keeps.
    """

    solve: Solver
    updates: bool


@dataclass(frozen=True)
class Int4:
    """Rounding to int4, such that `convert` finds the same codes and scales again.

    Attributes:
        group: Inputs that share a scale: 32, 64 or 128; 0 is the whole row.
    """

    group: int

    def span(self, cols: int) -> int:
        """Returns how many of `cols` inputs share a scale."""
        return self.group or cols

    def scales(self, values: Matrix) -> NDArray[np.float32]:
        """Returns the scale of every row for one group of inputs, values [rows, inputs]."""
        from .. import _core

        return _core.choose_scales(values, "int4", 0)[:, 0].astype(np.float32)

    def round(self, values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the nearest values that can be stored, one input of every row: [rows]."""
        steps = np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)
        return np.asarray(np.clip(np.rint(steps), -8, 7) * scales)


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


def admm(weight: Matrix, gram: Gram, target: Target, present: Mask | None = None) -> Matrix:
    """Searches mask and values together by alternating directions (Boyd et al. 2011; for pruning, Boža 2024).

    One copy of the matrix follows the outputs, the other has the zeros, and a running sum of their difference pulls
    them together. Zeros come gradually (Zhu and Gupta 2017), and columns are scaled to inputs of the same size, so that
    one threshold is fair to all.

    Args:
        weight: [rows, cols].
        gram: Sum of x x^T over the calibration inputs, [cols, cols]; may be singular.
        target: The zeros to make; an unstructured target compares over the whole matrix.
        present: False where an entry has to be zero, [rows, cols]; any may stay by default.

    Returns:
        The pruned matrix, [rows, cols].
    """
    moments = damped(gram)
    scale = np.sqrt(np.diagonal(moments))
    allowed: Mask = np.ones(weight.shape, np.bool_) if present is None else present
    matters = np.where(allowed, np.diagonal(gram) > 0, np.float32(0))
    moments = (moments / np.outer(scale, scale)).astype(np.float32)
    scale = scale.astype(np.float32)
    free = weight * scale
    aim = free @ moments
    # No eigenvalue is below the strength, so that float32 does.
    inverted = inverse(moments + _STRENGTH * np.eye(len(moments), dtype=np.float32))
    pull = np.zeros_like(free)
    keep = allowed
    for step in range(_STEPS):
        done = (step + 1) / _MASK_STEPS
        free += pull
        if done <= 1:
            scores = np.abs(free)
            scores *= matters
            if target.pattern:
                keep = allowed & keep_pattern(scores, target.pattern)
            elif done < 1:
                keep = allowed & (scores >= lower_bound(scores, target.sparsity * (1 - (1 - done) ** 3)))
            else:
                keep = allowed & keep_fraction(scores, target.zeros(weight.size))
        sparse = free * keep
        pull = free - sparse
        sparse -= pull
        sparse *= _STRENGTH
        sparse += aim
        np.matmul(sparse, inverted, out=free)
    free += pull
    free /= scale
    return np.where(keep, free, np.float32(0))


def lower_bound(scores: Matrix, fraction: float) -> float:
    """Returns what about that fraction of the scores [rows, cols] lie below, from some of them."""
    stride = scores.size // _SCORES + 1
    while math.gcd(stride, scores.shape[1]) > 1:  # so that it comes to every column
        stride += 1
    some = scores.ravel()[::stride]
    place = int(fraction * some.size)
    return float(np.partition(some, place)[place])


def sparse_plus_low_rank(
    weight: Matrix, gram: Gram, target: Target, present: Mask, solve: Solver, rank: int
) -> tuple[Matrix, LowRank]:
    """Splits a matrix into a sparse and a low-rank part, S + U V, in turn fitted to what the other leaves.

    The turns are those of OATS (Zhang & Papyan 2024); here both parts see all second moments of the inputs, not their
    diagonal alone.

    Args:
        weight: [rows, cols].
        gram: Sum of x x^T over the calibration inputs, [cols, cols].
        target: The zeros of S.
        present: False where S has to be zero, [rows, cols].
        solve: Makes S.
        rank: Of U V; at most rows and cols.

    Returns:
        S [rows, cols], and U [rows, rank] and V [rank, cols].
    """
    left = weight
    for _ in range(_ROUNDS):
        sparse = solve(left, gram, target, present)
        branch = low_rank(weight - sparse, gram, rank)
        left = weight - branch.u @ branch.v
    return sparse, branch


def rounded(method: Method, rounding: Int4) -> Method:
    """Returns a method that also rounds what stays: SparseGPT in its own sweep, others in one behind it."""
    if method.solve is sparsegpt:
        return Method(partial(sparsegpt, rounding=rounding), updates=True)

    def solve(weight: Matrix, gram: Gram, target: Target, present: Mask) -> Matrix:
        pruned = method.solve(weight, gram, target, present)
        return sparsegpt(pruned, gram, Target(0.0), pruned != 0, rounding)

    return Method(solve, updates=True)


def low_rank(matrix: Matrix, gram: Gram, rank: int) -> LowRank:
    """Returns the U V of a rank whose outputs come nearest to those of a matrix.

    U spans the leading eigenvectors of M G M^T, which are found by subspace iteration (Halko et al. 2011), and
    V = U^T M.

    Args:
        matrix: M, [rows, cols].
        gram: G, the sum of x x^T over the calibration inputs, [cols, cols].
        rank: At most rows and cols.
    """
    wide = matrix.astype(np.float64)

    def turned(basis: Gram) -> Gram:
        product: Gram = wide @ (gram @ (wide.T @ basis))
        return product

    count = min(rank + _SPARE, len(wide))
    basis = np.random.default_rng(0).standard_normal((len(wide), count))
    for _ in range(_TURNS):
        basis, _ = np.linalg.qr(turned(basis))
    _, vectors = np.linalg.eigh(basis.T @ turned(basis))
    u = basis @ vectors[:, : -rank - 1 : -1]
    return LowRank(u.astype(np.float32), (u.T @ wide).astype(np.float32))


def damped(gram: Gram) -> Gram:
    """Adds 1% of the mean of the diagonal to the diagonal, which gives singular moments an inverse."""
    return gram + _DAMPING * (float(np.diagonal(gram).mean()) or 1.0) * np.eye(len(gram))


def inverse_factor(gram: Gram) -> Matrix:
    """Returns the upper triangular U with U^T U proportional to damped(gram)^-1, float32 [cols, cols].

    Raises:
        GossamerError: `gram` is not positive semidefinite, even with damping.
    """
    moments = damped(gram)
    moments /= np.diagonal(moments).mean()  # the scale of U is of no consequence; this one is far from float32's limits
    try:
        # gram = L L^T reversed on both axes gives the factor of the inverse without forming the inverse:
        # with J the reversal, J gram J = L L^T, so gram^-1 = (J L^-T J)(J L^-1 J), and J L^-1 J is upper triangular.
        lower = np.asarray(np.linalg.cholesky(moments[::-1, ::-1]), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise GossamerError("second moments of the inputs are not positive semidefinite") from None
    return np.ascontiguousarray(_inverse_of_lower(lower)[::-1, ::-1], dtype=np.float32)


def inverse(matrix: NDArray[Number]) -> NDArray[Number]:
    """Returns the inverse of a symmetric positive definite matrix; nearly all of it is products.

    Raises:
        GossamerError: the matrix is not positive definite.
    """
    try:
        lower = np.asarray(np.linalg.cholesky(matrix), dtype=matrix.dtype)
    except np.linalg.LinAlgError:
        raise GossamerError("second moments of the inputs are not positive semidefinite") from None
    factor = _inverse_of_lower(lower)
    return np.asarray(factor.T @ factor)


def _inverse_of_lower(lower: NDArray[Number]) -> NDArray[Number]:
    """Returns the inverse of a lower triangular matrix, by halves: a quarter of a general solver's work."""
    size = len(lower)
    if size <= _SMALL:
        return np.asarray(np.tril(np.linalg.inv(lower)), dtype=lower.dtype)
    half = size // 2
    result = np.zeros_like(lower)
    result[:half, :half] = _inverse_of_lower(lower[:half, :half])
    result[half:, half:] = _inverse_of_lower(lower[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (lower[half:, :half] @ result[:half, :half])
    return result


CALIBRATED = {"wanda": Method(wanda, False), "sparsegpt": Method(sparsegpt, True), "admm": Method(admm, True)}
METHODS = ("magnitude", *CALIBRATED)
DEFAULT_METHOD = "admm"
