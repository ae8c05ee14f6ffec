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
    return gram + _DAMPING * (float(np.diagonal(gram).mean()) or 1.0) * np.eye(len(gram))


def inverse_factor(gram: Gram) -> Matrix:
    """Returns the upper triangular U with U^T U proportional to damped(gram)^-1, float32 [cols, cols].

    Raises:
        GossamerError: `gram` is not positive semidefinite, even with damping.
    """
    moments = damped(gram)
    moments /= np.diagonal(moments).mean()  # the scale of U is of no consequence; this one is far from float32's limits
    # gram = L L^T reversed on both axes gives the factor of the inverse without forming the inverse:
    # with J the reversal, J gram J = L L^T, so gram^-1 = (J L^-T J)(J L^-1 J), and J L^-1 J is upper triangular.
    return np.ascontiguousarray(_inverse_of_lower(moments[::-1, ::-1])[::-1, ::-1], dtype=np.float32)


def inverse(matrix: NDArray[Number]) -> NDArray[Number]:
    """Returns the inverse of a symmetric positive definite matrix; nearly all of it is products.

    Raises:
        GossamerError: the matrix is not positive definite.
    """
    factor = _inverse_of_lower(matrix)
    return np.asarray(factor.T @ factor)


def _inverse_of_lower(matrix: NDArray[Number]) -> NDArray[Number]:
    """Returns L^-1 of a matrix L L^T, by halves: products take a fraction of the time of LAPACK's own steps.

    Raises:
        GossamerError: the matrix is not positive definite.
    """
    size = len(matrix)
    if size <= _SMALL:
        try:
            lower = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            raise GossamerError("second moments of the inputs are not positive semidefinite") from None
        return np.asarray(np.tril(np.linalg.inv(lower)), dtype=matrix.dtype)
    half = size // 2
    result = np.zeros_like(matrix)
    first = result[:half, :half] = _inverse_of_lower(matrix[:half, :half])
    below = matrix[half:, :half] @ first.T  # of L
    second = result[half:, half:] = _inverse_of_lower(matrix[half:, half:] - below @ below.T)
    np.matmul(second, below @ first, out=below)
    np.negative(below, out=result[half:, :half])
    return result
