"""The pruning methods: one matrix and the second moments of its inputs in, the pruned matrix out.

An entry that is zero in the checkpoint stays zero: those that see inputs are told with `present`, and to `magnitude`
it has the lowest score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.low_rank import LowRank
from .alternating import Admm, admm
from .inverses import inverse_factor
from .masks import Target, keep_even_rows, keep_fraction, keep_pattern

Matrix = NDArray[np.float32]
Gram = NDArray[np.float64]
Mask = NDArray[np.bool_]
Solver = Callable[[Matrix, Gram, Target, Mask], Matrix]

_BLOCK = 128
# Of `low_rank`: directions beside those asked for, and how often they are turned towards the leading ones.
_SPARE = 8
_TURNS = 4
# Of `sparse_plus_low_rank`: how often each part is fitted to what the other leaves.
_ROUNDS = 8


class Prepared(Protocol):
    """A method that knows the inputs already; see `gossamer.pruning.alternating.Admm`."""

    def __call__(self, weight: Matrix, target: Target, present: Mask, lacking: Matrix | None = None) -> Matrix:
        """Prunes a matrix [rows, cols] whose outputs are to have what they lack besides."""


@dataclass(frozen=True)
class Method:
    """A method that looks at the inputs of a matrix.

    Attributes:
        solve: What it does to a matrix: weight [rows, cols], gram [cols, cols], target, present [rows, cols].
        updates: Whether it changes the values that it keeps.
        prepare: Does once what is the same for all matrices that read the same inputs, gram [cols, cols].
    """

    solve: Solver
    updates: bool
    prepare: Callable[[Gram], Prepared] | None = None


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


CALIBRATED = {"wanda": Method(wanda, False), "sparsegpt": Method(sparsegpt, True), "admm": Method(admm, True, Admm)}
METHODS = ("magnitude", *CALIBRATED)
DEFAULT_METHOD = "admm"
