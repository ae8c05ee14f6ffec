"""What formats and value types there are, and the bytes of a matrix in each that a token has to read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import GossamerError

FORMATS = ("dense", "bitmap", "csr", "nm")
VALUE_BITS = {"f32": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4}
TYPES = tuple(VALUE_BITS)
INTEGER_TYPES = ("int8", "int4")
FLOAT_TYPES = tuple(type for type in TYPES if type not in INTEGER_TYPES)

# Types of cached keys and values that can be asked for.
KV_TYPES = ("auto", "f32", "f16", "bf16", "int8")
STORED = "stored"  # in place of a type: the one that a tensor has in the checkpoint; f32 for quantized ones
GROUPS = (0, 32, 64, 128)  # inputs a scale; 0 is the whole row
PATTERN_LENGTHS = (4, 8, 16, 32, 64)  # M of an N:M pattern

_PANEL_ROWS, _BLOCK_COLS, _SLOT = 16, 64, 4  # see docs/format.md


@dataclass(frozen=True)
class Shape:
    """What the choice of a format depends on: a matrix's size and where its stored values are zero.

    Attributes:
        rows: Outputs.
        cols: Inputs.
        nonzeros: Stored values that are not zero.
        panels: Stored values that are not zero, by panel of 16 rows.
        slots: Slots of 4 values that CSR needs, by panel: each row's non-zeros in a block fill whole ones.
        steps: Rounds of slots that CSR needs, one slot of each row of a panel at a time.
        csr_blocks: Blocks of inputs that CSR counts in.
        patterns: For every M, the smallest N below M so that no M inputs of a row hold more than N non-zeros.
    """

    rows: int
    cols: int
    nonzeros: int
    panels: tuple[int, ...]
    slots: tuple[int, ...]
    steps: int
    csr_blocks: int
    patterns: dict[int, int]

    @property
    def zeros(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.nonzeros / (self.rows * self.cols)

    @property
    def positions(self) -> int:
        """Positions of whole blocks of 64 inputs and panels of 16 outputs: what dense stores."""
        return len(self.panels) * _PANEL_ROWS * (-self.cols % _BLOCK_COLS + self.cols)


def check_group(group: int) -> None:
    """Raises `GossamerError` for a number of inputs that cannot share a scale."""
    if group not in GROUPS:
        raise GossamerError(f"group must be one of {', '.join(map(str, GROUPS))}, got {group}")


def measure(values: NDArray[Any], group: int = 0) -> Shape:
    """Looks at where a matrix is zero.

    Args:
        values: [rows, cols], float values or integer codes; NaN counts as a value.
        group: Inputs a scale serves; with 32, CSR works in blocks of 32 inputs.
    """
    return shape_of(nonzero_bits(values), values.shape[1], group)


def nonzero_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns a bit for every value of [rows, cols] that is not zero, [rows, ceil(cols / 8)]; rows can be put together.

    Args:
        values: As for `measure`.
    """
    return np.packbits(values != 0, axis=1)


def shape_of(bits: NDArray[np.uint8], cols: int, group: int = 0) -> Shape:
    """Returns what `measure` does, from what `nonzero_bits` found.

    Args:
        bits: Of the whole matrix.
        cols: Its inputs.
        group: As for `measure`.
    """
    rows = len(bits)
    padded = np.zeros((-rows % _PANEL_ROWS + rows, (-cols % _BLOCK_COLS + cols) // 8), np.uint8)
    padded[:rows, : bits.shape[1]] = bits
    fours, eights = _counted(padded)
    counts = {4: fours, 8: eights}
    for length in PATTERN_LENGTHS[2:]:
        half = counts[length // 2]
        counts[length] = half[:, ::2] + half[:, 1::2]
    most = {length: int(count.max()) for length, count in counts.items()}
    tiles = counts[32 if group == 32 else _BLOCK_COLS].reshape(len(padded) // _PANEL_ROWS, _PANEL_ROWS, -1)
    slots = -(-tiles.astype(np.int64) // _SLOT)
    panels = tiles.sum((1, 2), dtype=np.int64)
    return Shape(
        rows=rows,
        cols=cols,
        nonzeros=int(panels.sum()),
        panels=tuple(panels.tolist()),
        slots=tuple(slots.sum((1, 2)).tolist()),
        steps=int(slots.max(1).sum()),
        csr_blocks=tiles.shape[2],
        patterns={length: max(count, 1) for length, count in most.items() if count < length},
    )


def _counted(bits: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Counts the bits of every byte, of eight bytes at once: the larger of its halves' counts, and all of it."""
    words = bits.view(np.uint64)
    ones, pairs, halves = (np.uint64(each * (2**64 // 255)) for each in (0x55, 0x33, 0x0F))
    twos = words - (words >> 1 & ones)
    fours = (twos & pairs) + (twos >> 2 & pairs)
    low, high = fours & halves, fours >> 4 & halves
    return np.maximum(low.view(np.uint8), high.view(np.uint8)), (low + high).view(np.uint8)


def expected_shape(rows: int, cols: int, nonzeros: int, pattern: tuple[int, int] | None = None) -> Shape:
    """Returns the shape that a matrix should have whose non-zeros lie evenly, for where looking at all would take long.

    Args:
        rows: Outputs.
        cols: Inputs.
        nonzeros: Stored values that are not zero.
        pattern: (N, M) that is known to hold.
    """
    panels, blocks = -(-rows // _PANEL_ROWS), -(-cols // _BLOCK_COLS)
    density = nonzeros / (panels * _PANEL_ROWS * blocks * _BLOCK_COLS)
    # How many of a row's values in a block are there, as independent throws have it, and so how many slots.
    chances = np.array([math.comb(_BLOCK_COLS, k) * density**k * (1 - density) ** (_BLOCK_COLS - k) for k in range(65)])
    slots = -(-np.arange(65) // _SLOT)
    below = np.array([chances[slots <= most].sum() for most in range(_BLOCK_COLS // _SLOT + 1)])
    steps = float((1 - below**_PANEL_ROWS).sum())  # the mean of the largest of 16
    mean = float((chances * slots).sum())
    return Shape(
        rows=rows,
        cols=cols,
        nonzeros=nonzeros,
        panels=(round(nonzeros / panels),) * panels,
        slots=(round(mean * _PANEL_ROWS * blocks),) * panels,
        steps=round(steps * panels * blocks),
        csr_blocks=blocks,
        patterns={} if pattern is None else {pattern[1]: pattern[0]},
    )


def stored_bytes(shape: Shape, format: str, type: str, pattern: tuple[int, int] | None = None) -> int:
    """Returns what a token reads of a packed matrix: values and indices in bytes.

    Scales are left out: they weigh the same in every format. So is the padding of each stream to whole cache lines.

    Args:
        shape: Of the matrix.
        format: One of `FORMATS`.
        type: One of `TYPES`.
        pattern: (N, M) of format "nm".
    """
    panels = len(shape.panels)
    positions = shape.positions
    if format == "dense":
        return _value_bytes((positions // panels,) * panels, type)
    if format == "nm":
        if pattern is None:
            raise ValueError('format "nm" needs a pattern')
        return positions // 8 + _value_bytes((positions // panels * pattern[0] // pattern[1],) * panels, type)
    offsets = 8 * (-(-panels // _panels_a_stream(type)) + 1)
    if format == "bitmap":
        return positions // 8 + _value_bytes(shape.panels, type) + offsets
    if format == "csr":
        values = _value_bytes(tuple(_SLOT * slots for slots in shape.slots), type)
        places = 2 * 8 * (panels + 1) + panels * shape.csr_blocks  # of slots and steps, and the counts of steps
        return values + offsets + places + _SLOT * sum(shape.slots) + 2 * shape.steps
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")


def _panels_a_stream(type: str) -> int:
    return 2 if type == "int4" else 1


def _value_bytes(panels: tuple[int, ...], type: str) -> int:
    """Bytes of the values of each panel; panels that share a stream are as long as the longer of them."""
    share = _panels_a_stream(type)
    streams = (max(panels[place : place + share]) for place in range(0, len(panels), share))
    return sum(streams) * share * VALUE_BITS[type] // 8


def best_pattern(shape: Shape) -> tuple[int, int] | None:
    """Returns the pattern (N, M) that holds in every row and keeps least; of equal ones that of the smallest M."""
    return min(((n, m) for m, n in shape.patterns.items()), key=lambda p: (p[0] / p[1], p[1]), default=None)
