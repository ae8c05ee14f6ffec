"""Slopes of ALiBi: a geometric series over the heads, and what is done where their number is no power of two."""

from __future__ import annotations

import math

import numpy as np


def bloom(heads: int) -> tuple[float, ...]:
    """Returns the slopes of Press et al. 2022: between those of a power of two come some of the next one's."""
    whole = 2 ** math.floor(math.log2(heads))
    first, next_one = (np.float32(2.0 ** -(8.0 / count)) for count in (whole, 2 * whole))
    powers = [first**power for power in range(1, whole + 1)]
    return tuple(map(float, powers + [next_one ** (2 * extra + 1) for extra in range(heads - whole)]))


def mpt(heads: int, most: float = 8.0) -> tuple[float, ...]:
    """Returns the slopes of MPT: those of the next power of two, every second one first, as many as there are heads.

    Args:
        heads: Query heads.
        most: The last of a power of two is 2 to the power of minus this (`alibi_bias_max`).
    """
    whole = 2 ** math.ceil(math.log2(heads))
    powers = np.arange(1, whole + 1, dtype=np.float32) * np.float32(most / whole)
    slopes = np.float32(1) / np.power(np.float32(2), powers)
    if whole != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return tuple(slopes.tolist())
