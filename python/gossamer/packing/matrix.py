"""One matrix from float values to a packed weight: rounded first, since that makes zeros, then measured and packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checkpoints.codes import Codes
from ..formats import INTEGER_TYPES, STORED, VALUE_BITS, Shape, measure
from .planner import Choice, Lookup, Machine, choose

_F16_MAX = 65504.0


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
    _values: NDArray[np.float32] | tuple[NDArray[np.int8], NDArray[np.float16]]  # or codes and their scales
    _packed: _core.Weight | None  # one form that it is packed in already

    def choose(self, format: str = "auto", machine: Machine | Lookup | None = None) -> Choice:
        """Chooses a format, as `planner.choose` does."""
        return choose(self.shape, self.type, format, machine)

    def pack(self, choice: Choice) -> _core.Weight:
        """Packs the values in the format that was chosen."""
        packed = self._packed
        if packed is not None and (packed.format, packed.pattern) == (choice.format, choice.pattern):
            return packed
        if isinstance(self._values, tuple):
            return _core.pack_codes(*self._values, choice.format, self.type, self.group, choice.pattern)
        return _core.pack(self._values, choice.format, self.type, self.group, choice.pattern)


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
    if type not in INTEGER_TYPES:
        if type == "f16" and _exceeds(values):
            raise ValueError("values beyond 65504 cannot be stored as f16")
        return Rounded(type, group, measure(values), values, None)
    if not np.isfinite(values).all():
        raise ValueError(f"NaN or infinite values cannot be stored as {type}")
    return stored(_core.pack(values, "dense", type, group))


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
