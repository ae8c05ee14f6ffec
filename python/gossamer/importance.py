"""What the values of a matrix matter, told from their sizes alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def relative_magnitude(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns |w| / (sum of its row's |w|) + |w| / (sum of its column's |w|), [rows, cols].

    That is the relative importance of Zhang et al. 2024, which spares whole outputs and inputs.

    Args:
        weight: [rows, cols].
    """
    size = np.abs(weight)
    scores = np.zeros_like(size)
    for axis in (0, 1):
        total = size.sum(axis, keepdims=True, dtype=np.float64).astype(np.float32)
        scores += np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    return scores
