"""What a pruned matrix is to look like, and which of its entries to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..formats import STORED
from ..kinds import is_kind


@dataclass(frozen=True)
class Target:
    """How many zeros to make: a fraction of all entries, or at most N of every M inputs kept.

    Attributes:
        sparsity: Fraction of zeros, 0 <= sparsity < 1; follows from `pattern` where one is given.
        pattern: (N, M): of every M consecutive inputs of a row at most N stay, in a shorter last group too.
    """

    sparsity: float
    pattern: tuple[int, int] | None = None

    @classmethod
    def parse(cls, sparsity: float | None, pattern: Any) -> Target:
        """Checks the two ways to ask; exactly one must be given.

        Raises:
            GossamerError: neither or both are given, or one is out of range.
        """
        if (sparsity is None) == (pattern is None):
            raise GossamerError("give either a sparsity or an N:M pattern")
        if pattern is not None:
            pair = list(pattern) if isinstance(pattern, (list, tuple)) else []
            if len(pair) != 2 or not all(is_kind(one, "int") for one in pair):
                raise GossamerError(f"pattern must be two whole numbers, got {pattern!r:.80}")
            keep, group = map(int, pair)
            if not 1 <= keep <= group:
                raise GossamerError(f"pattern must be N:M with 1 <= N <= M, got {keep}:{group}")
            return cls(1.0 - keep / group, (keep, group))
        assert sparsity is not None
        if not 0.0 <= sparsity < 1.0:
            raise GossamerError(f"sparsity must be at least 0 and below 1, got {sparsity}")
        return cls(float(sparsity))

    def zeros(self, entries: int) -> int:
        """Returns how many of `entries` entries are to be zero; for an unstructured target."""
        return round(self.sparsity * entries)


@dataclass(frozen=True)
class Form:
    """What a matrix is to become.

    Attributes:
        target: Its zeros.
        weights: "int4" where what stays is rounded to that, too.
        rank: Of its low-rank branch; 0 for none.
    """

    target: Target
    weights: str = STORED
    rank: int = 0


def keep_fraction(scores: NDArray[np.floating], zeros: int) -> NDArray[np.bool_]:
    """Keeps all but the `zeros` lowest scores of the whole array; exactly that many, whatever the ties.

    Args:
        scores: Any shape.
        zeros: 0 ... scores.size.

    Returns:
        True where an entry stays, of the shape of `scores`.
    """
    keep = np.ones(scores.size, dtype=np.bool_)
    if zeros:
        keep[np.argpartition(scores, zeros - 1, axis=None)[:zeros]] = False
    return keep.reshape(scores.shape)


def keep_even_rows(scores: NDArray[np.floating], zeros: int) -> NDArray[np.bool_]:
    """Keeps all but `zeros` low scores of [rows, cols], as many in every row as in any other, or one more.

    The rows with one more are those whose next score is lowest.
    """
    rows = len(scores)
    each, more = divmod(zeros, rows)
    keep = keep_rows(scores, each)
    if more:
        left = np.where(keep, scores, np.inf)
        lowest = left.argmin(axis=1)
        chosen = np.argpartition(left[np.arange(rows), lowest], more - 1)[:more]
        keep[chosen, lowest[chosen]] = False
    return keep


def keep_rows(scores: NDArray[np.floating], zeros: int) -> NDArray[np.bool_]:
    """Keeps all but the `zeros` lowest scores of every row of [rows, cols]."""
    keep = np.ones(scores.shape, dtype=np.bool_)
    if zeros:
        lowest = np.argpartition(scores, zeros - 1, axis=1)[:, :zeros]
        np.put_along_axis(keep, lowest, False, axis=1)
    return keep


def keep_pattern(scores: NDArray[np.floating], pattern: tuple[int, int]) -> NDArray[np.bool_]:
    """Keeps the N highest scores of every M consecutive columns of [rows, cols]; the last group may be shorter."""
    n, m = pattern
    rows, cols = scores.shape
    whole = cols - cols % m
    keep = np.ones(scores.shape, dtype=np.bool_)
    if n < m and whole:
        keep[:, :whole] = keep_rows(scores[:, :whole].reshape(-1, m), m - n).reshape(rows, whole)
    if cols - whole > n:
        keep[:, whole:] = keep_rows(scores[:, whole:], cols - whole - n)
    return keep
