"""Random packed weights for benches, and copies of them in memory of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossamer import _core
from gossamer.zoo import synthetic

LIMIT = {"int8": 127, "int4": 7}


def random_weight(
    rows: int,
    cols: int,
    format: str,
    type: str,
    zeros: float = 0.0,
    pattern: tuple[int, int] | None = None,
    group: int = 64,
) -> _core.Weight:
    """Draws a weight [rows, cols] whose stored values hold the zeros that are asked for, and no others.

    Args:
        rows: Outputs.
        cols: Inputs, a multiple of M.
        format: One of `gossamer.formats.FORMATS`.
        type: One of `gossamer.formats.TYPES`.
        zeros: Fraction of zeros, at random places; ignored with a pattern.
        pattern: (N, M): N of every M inputs of a row are kept, at random places.
        group: Inputs a scale, for integer types.
    """
    random = np.random.default_rng([rows, cols])
    keep = _kept(random, rows, cols, zeros, pattern)
    of = pattern if format == "nm" else None
    if type not in LIMIT:
        values = random.random((rows, cols), np.float32) + np.float32(0.25)
        values *= random.choice(np.array([-1, 1], np.float32), cols)
        values[~keep] = 0
        return _core.pack(values, format, type, group, of)
    codes = random.integers(1, LIMIT[type] + 1, (rows, cols), np.int8) * random.choice(np.array([-1, 1], np.int8), cols)
    codes[~keep] = 0
    scales = (random.random((rows, -(-cols // group) if group else 1), np.float32) + 0.5).astype(np.float16)
    return _core.pack_codes(codes, scales / np.float16(LIMIT[type]), format, type, group, of)


def _kept(
    random: np.random.Generator, rows: int, cols: int, zeros: float, pattern: tuple[int, int] | None
) -> NDArray[np.bool_]:
    scores = random.random((rows, cols), np.float32)
    if pattern is None:
        return scores >= zeros
    kept, of = pattern
    ranks = scores.reshape(rows, -1, of).argsort(2).argsort(2)
    return ranks.reshape(rows, cols) < kept


def copies(weight: _core.Weight, size: int) -> list[_core.Weight]:
    """As many copies of a weight as hold at least `size` bytes together; numpy asks for huge pages for them."""
    return list(synthetic.copies(weight, max(1, -(-size // weight.nbytes))))
