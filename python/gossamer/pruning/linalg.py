"""Inverses of second moments, which are symmetric and, damped, positive definite; the names of matrices."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError

Matrix = NDArray[np.float32]
Gram = NDArray[np.float64]
Mask = NDArray[np.bool_]
Number = TypeVar("Number", np.float32, np.float64)

_DAMPING = 0.01
_SMALL = 64  # inverted by LAPACK


def damped(gram: Gram) -> Gram:
    """Adds 1% of the mean of the diagonal to the diagonal, which gives singular moments an inverse."""
    found: Gram = np.array(gram, order="C")
    found.reshape(-1)[:: len(gram) + 1] += _DAMPING * (float(np.diagonal(gram).mean()) or 1.0)
    return found


def inverse_factor(gram: Gram) -> Matrix:
    """Returns the upper triangular U with U^T U proportional to damped(gram)^-1, float32 [cols, cols].

    Raises:
        GossamerError: `gram` is not positive semidefinite, even with damping.
    """
    # gram = L L^T reversed on both axes gives the factor of the inverse without forming the inverse:
    # with J the reversal, J gram J = L L^T, so gram^-1 = (J L^-T J)(J L^-1 J), and J L^-1 J is upper triangular.
    moments = damped(gram[::-1, ::-1])
    moments /= np.diagonal(moments).mean()  # the scale of U is of no consequence; this one is far from float32's limits
    invert_lower(moments)
    return np.ascontiguousarray(moments[::-1, ::-1], dtype=np.float32)


def inverse(matrix: NDArray[Number]) -> NDArray[Number]:
    """Returns the inverse of a symmetric positive definite matrix; nearly all of it is products.

    Raises:
        GossamerError: the matrix is not positive definite.
    """
    factor = matrix.copy()
    invert_lower(factor)
    return np.asarray(factor.T @ factor)


def invert_lower(matrix: NDArray[Number]) -> None:
    """Replaces a matrix L L^T by L^-1, by halves: products take a fraction of the time of LAPACK's own steps.

    Raises:
        GossamerError: the matrix is not positive definite.
    """
    size = len(matrix)
    if size <= _SMALL:
        try:
            lower = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            raise GossamerError("second moments of the inputs are not positive semidefinite") from None
        matrix[:] = np.tril(np.linalg.inv(lower))
        return
    half = size // 2
    first, second = matrix[:half, :half], matrix[half:, half:]
    invert_lower(first)
    below = matrix[half:, :half] @ first.T  # of L
    second -= below @ below.T
    invert_lower(second)
    np.matmul(second, below @ first, out=below)
    np.negative(below, out=matrix[half:, :half])
    matrix[:half, half:] = 0
