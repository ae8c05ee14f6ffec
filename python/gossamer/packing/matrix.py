"""One matrix from float values to a packed weight: rounded first, since that makes zeros, then measured and packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checkpoints.codes import Codes, spread
from ..formats import INTEGER_TYPES, STORED, VALUE_BITS, Shape, measure, nonzero_bits, shape_of
from .planner import MIN_ZEROS, Choice, Lookup, Machine, choose

_F16_MAX = 65504.0
_PIECE = 1 << 20  # values of one piece of a matrix: what is made of them stays in memory that is used again
_PIECE_ROWS = 32  # whole panels, and pairs of them, and scales of whole cache lines


@dataclass(frozen=True)
class Rounded:
    """A matrix whose values have the type that they are stored with.

    Attributes:
        type: One of `TYPES`.
        group: Inputs a scale, for integer types.
        shape: Where the stored values are zero.
    """

    type: str
    group: int
    shape: Shape
    _values: NDArray[np.float32] | tuple[NDArray[np.int8], NDArray[np.float16]] | None  # or codes and their scales
    _packed: _core.Weight | None  # one form that it is packed in already; the only one where there are no values

    @property
    def nonzeros(self) -> int | None:
        """Stored values that are not zero; None where that is not known, since floats may be rounded to zero."""
        return self.shape.nonzeros if self.type in INTEGER_TYPES or self.type == "f32" else None

    def holds(self, values: NDArray[np.float32]) -> bool:
        """Whether the codes of an integer type stand for values [rows, cols] exactly."""
        assert isinstance(self._values, tuple)
        return _hold(self._values, self.group, values)

    def choose(self, format: str = "auto", machine: Machine | Lookup | None = None) -> Choice:
        """Chooses a format, as `planner.choose` does."""
        return choose(self.shape, self.type, format, machine)

    def pack(self, choice: Choice) -> _core.Weight:
        """Packs the values in the format that was chosen."""
        packed = self._packed
        if packed is not None and (packed.format, packed.pattern) == (choice.format, choice.pattern):
            return packed
        values = self._values
        if values is None:
            assert packed is not None
            values = packed.codes() if self.type in INTEGER_TYPES else packed.unpack()
        if isinstance(values, tuple):
            return _core.pack_codes(*values, choice.format, self.type, self.group, choice.pattern)
        return _core.pack(values, choice.format, self.type, self.group, choice.pattern)


def stored(weight: _core.Weight) -> Rounded:
    """Returns the matrix of a packed weight, whose values stay exactly what they are."""
    if weight.type in INTEGER_TYPES:
        codes, scales = weight.codes()
        return Rounded(weight.type, weight.group, measure(codes, weight.group), (codes, scales), weight)
    values = weight.unpack()
    return Rounded(weight.type, weight.group, measure(values), values, weight)


def round_values(values: NDArray[np.float32], type: str, group: int) -> Rounded:
    """Rounds a matrix to the type that it is stored with.

    Args:
        values: [rows, cols].
        type: One of `TYPES`.
        group: Inputs that one scale of int8 and int4 values serves.

    Raises:
        ValueError: a value cannot be stored with the type.
    """
    _check(values, type)
    if type not in INTEGER_TYPES:
        return Rounded(type, group, measure(values), values, None)
    codes = _core.round_codes(values, type, group)
    return Rounded(type, group, measure(codes[0], group), codes, None)


def is_int4(values: NDArray[np.float32], group: int) -> bool:
    """Whether int4 stores every value of a matrix exactly, as it does those that were pruned for it."""
    if not np.isfinite(values).all():
        return False
    return _hold(_core.round_codes(values, "int4", group), group, values)


def pieces(rows: int, cols: int) -> list[slice]:
    """Returns the rows of the pieces that a large matrix is rounded in, so that little of it is there as floats."""
    step = max(_PIECE // cols // _PIECE_ROWS, 1) * _PIECE_ROWS
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


@dataclass(frozen=True)
class Piece:
    """Some rows of a matrix, rounded: what `join` puts together.

    Attributes:
        type: As of `Rounded`, as is the next.
        group: Inputs a scale.
        cols: Inputs.
        bits: Where it is zero; see `nonzero_bits`.
        codes: With their scales; None where it is packed already.
        packed: As dense, where that is what it is to be, or has too few zeros for another format.
    """

    type: str
    group: int
    cols: int
    bits: NDArray[np.uint8]
    codes: tuple[NDArray[np.int8], NDArray[np.float16]] | None
    packed: _core.Weight | None

    def rounded(self) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        """The codes, taken out again where it is packed."""
        if self.codes is None and self.packed is not None:
            return self.packed.codes()
        assert self.codes is not None
        return self.codes

    def holds(self, values: NDArray[np.float32]) -> bool:
        """Whether the codes of an integer type stand for values [rows, cols] exactly."""
        return _hold(self.rounded(), self.group, values)


def round_piece(values: NDArray[np.float32], type: str, group: int, *, dense: bool) -> Piece:
    """Rounds some rows of a matrix, as `round_values` does all; float types have to be packed as dense at once.

    Raises:
        ValueError: a value cannot be stored with the type.
    """
    _check(values, type)
    cols = values.shape[1]
    if type not in INTEGER_TYPES:
        return Piece(type, group, cols, nonzero_bits(values), None, _core.pack(values, "dense", type, group))
    codes = _core.round_codes(values, type, group)
    bits = nonzero_bits(codes[0])
    if dense or values.size - np.count_nonzero(codes[0]) < MIN_ZEROS * values.size:
        return Piece(type, group, cols, bits, None, _core.pack_codes(*codes, "dense", type, group))
    return Piece(type, group, cols, bits, codes, None)


def join(parts: list[Piece]) -> Rounded:
    """Returns the matrix of consecutive pieces; the list is emptied, so that each can go as soon as it may."""
    first = parts[0]
    shape = shape_of(np.concatenate([part.bits for part in parts]), first.cols, first.group)
    if all(part.packed for part in parts):
        return Rounded(first.type, first.group, shape, None, _stacked(parts, shape.rows))
    codes = np.empty((shape.rows, shape.cols), np.int8)
    scales = []
    at = 0
    while parts:
        mine, scale = parts.pop(0).rounded()
        codes[at : at + len(mine)] = mine
        scales.append(scale)
        at += len(mine)
    return Rounded(first.type, first.group, shape, (codes, np.concatenate(scales)), None)


def _stacked(parts: list[Piece], rows: int) -> _core.Weight:
    """The dense weight of dense pieces: their streams behind one another, without the spare bytes between."""
    first = parts[0]
    found: dict[str, list[NDArray[Any]]] = {}
    while parts:
        piece = parts.pop(0).packed
        assert piece is not None
        positions = (-piece.rows % 16 + piece.rows) * (-piece.cols % 64 + piece.cols)
        size = {"values": positions * VALUE_BITS[piece.type] // 8}
        for name, stream in piece.streams().items():
            whole = size.get(name, len(stream) * stream.itemsize) // stream.itemsize
            found.setdefault(name, []).append(stream[:whole] if parts else stream)
    streams = {name: np.concatenate(each) for name, each in found.items()}
    return _core.weight_from_streams("dense", first.type, rows, first.cols, first.group, None, streams)


def _hold(codes: tuple[NDArray[np.int8], NDArray[np.float16]], group: int, values: NDArray[np.float32]) -> bool:
    numbers, scales = codes
    return np.array_equal(numbers * spread(scales.astype(np.float32), group, values.shape[1]), values)


def _check(values: NDArray[np.float32], type: str) -> None:
    if type in INTEGER_TYPES and not np.isfinite(values).all():
        raise ValueError(f"NaN or infinite values cannot be stored as {type}")
    if type == "f16" and _exceeds(values):
        raise ValueError("values beyond 65504 cannot be stored as f16")


def keep_codes(codes: Codes, type: str, group: int) -> Rounded | None:
    """Returns a matrix of whole numbers as it is; None where that is not what is asked for, and it has to be rounded.

    Args:
        codes: The matrix.
        type: One of `TYPES`; "stored" and "auto" take the type that the codes need.
        group: Inputs that one scale should serve at least, with int8 or int4: finer scales are not kept. Coarser ones
            are, since nothing is gained by repeating them.
    """
    own = codes.type
    if type in INTEGER_TYPES:
        finer = bool(codes.group) and (not group or codes.group < group)
        if finer or VALUE_BITS[own] > VALUE_BITS[type]:
            return None
        own = type
    elif type not in (STORED, "auto"):
        return None
    scales = codes.half_scales(exact=type == STORED)
    if scales is None:
        return None
    return Rounded(own, codes.group, measure(codes.codes, codes.group), (codes.codes, scales), None)


def _exceeds(values: NDArray[Any]) -> bool:
    return bool((np.isfinite(values) & (np.abs(values) > _F16_MAX)).any())
