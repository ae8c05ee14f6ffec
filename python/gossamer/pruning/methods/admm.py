"""Pruning by alternating directions: one matrix and the second moments of its inputs in, the pruned matrix out."""

from __future__ import annotations

import math

import numpy as np

from ..linalg import Gram, Mask, Matrix, damped, inverse
from ..masks import Target, keep_fraction, keep_pattern
from .method import Method

_STRENGTH = np.float32(0.6)  # how strongly the two copies pull at each other
_STEPS = 13
_MASK_STEPS = 9  # until the mask is final
_SCORES = 1 << 16  # looked at for a mask that is not final


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

    Raises:
        GossamerError: `gram` is not positive semidefinite, even with damping.
    """
    return Admm(gram)(weight, target, np.ones(weight.shape, np.bool_) if present is None else present)


class Admm:
    """What `admm` needs to know of inputs, once for all matrices that read them."""

    def __init__(self, gram: Gram) -> None:
        """Takes the sum of x x^T over the calibration inputs, [cols, cols].

        Raises:
            GossamerError: it is not positive semidefinite, even with damping.
        """
        moments = damped(gram)
        scale = np.sqrt(np.diagonal(moments))
        moments /= scale
        moments /= scale[:, None]
        self._matters = (np.diagonal(gram) > 0).astype(np.float32)
        self._scale = scale.astype(np.float32)
        self._moments = moments.astype(np.float32)
        # No eigenvalue is below the strength, so that float32 does.
        self._inverse = inverse(self._moments + _STRENGTH * np.eye(len(moments), dtype=np.float32))
        self._inverse *= _STRENGTH

    def __call__(
        self,
        weight: Matrix,
        target: Target,
        present: Mask,
        lacking: Matrix | None = None,
    ) -> Matrix:
        """Prunes a matrix.

        Args:
            weight: [rows, cols].
            target: The zeros to make.
            present: False where an entry has to be zero, [rows, cols].
            lacking: What its outputs are to have besides: the sum of e x^T over the calibration inputs, [rows, cols].

        Returns:
            The pruned matrix, [rows, cols].
        """
        matters = self._matters if present.all() else self._matters * present
        free = weight * self._scale
        aim = free @ self._moments
        if lacking is not None:
            aim += lacking / self._scale
        aim /= _STRENGTH
        pull = np.zeros_like(free)
        drop = np.zeros_like(free)  # 1 where the sparse copy is zero
        other = np.empty_like(free)
        keep = present
        # All steps work in these five matrices: fresh memory would cost as much as what is done with it.
        for step in range(_STEPS):
            done = (step + 1) / _MASK_STEPS
            free += pull
            if done <= 1:
                scores = np.abs(free, out=other)
                scores *= matters
                if target.pattern:
                    keep = present & keep_pattern(scores, target.pattern)
                elif done == 1:
                    keep = present & keep_fraction(scores, target.zeros(weight.size))
                if target.pattern or done == 1:
                    np.subtract(1, keep, out=drop)
                else:
                    np.less(scores, lower_bound(scores, target.sparsity * (1 - (1 - done) ** 3)), out=drop)
                    if matters is not self._matters:
                        np.maximum(drop, ~present, out=drop)
            np.multiply(free, drop, out=pull)
            # The free copy follows the outputs and is pulled towards sparse - pull, where sparse = free - pull.
            free -= pull
            free -= pull
            free += aim
            np.matmul(free, self._inverse, out=other)
            free, other = other, free
        free /= self._scale
        return np.where(keep, free, np.float32(0))


def lower_bound(scores: Matrix, fraction: float) -> float:
    """Returns what about that fraction of the scores [rows, cols] lie below, from some of them."""
    stride = scores.size // _SCORES + 1
    while math.gcd(stride, scores.shape[1]) > 1:  # so that it comes to every column
        stride += 1
    some = scores.ravel()[::stride]
    place = int(fraction * some.size)
    return float(np.partition(some, place)[place])


METHOD = Method(admm, updates=True, prepare=Admm)
