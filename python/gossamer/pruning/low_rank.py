"""Low-rank branches: fitted to a matrix, and together with its zeros."""

from __future__ import annotations

import numpy as np

from ..checkpoints.lora import LowRank
from .linalg import Gram, Mask, Matrix
from .masks import Target
from .methods.method import Solver

# Of `low_rank`: directions beside those asked for, and how often they are turned towards the leading ones.
_SPARE = 8
_TURNS = 4
# Of `sparse_plus_low_rank`: how often each part is fitted to what the other leaves.
_ROUNDS = 8


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
