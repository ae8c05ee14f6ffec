"""One matrix from float values to a packed weight: rounded first, since that makes zeros, then measured and packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .formats import INTEGER_TYPES, Shape, measure
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
    _values: NDArray[np.float32]
    _codes: tuple[_core.Weight, NDArray[np.int8], NDArray[np.float16]] | None

    def choose(self, format: str = "auto", machine: Machine | Lookup | None = None) -> Choice:
        """Chooses a format, as `planner.choose` does."""
        return choose(self.shape, self.type, format, machine)

    def pack(self, choice: Choice) -> _core.Weight:
        """Packs the values in the format that was chosen."""
        if self._codes is None:
            return _core.pack(self._values, choice.format, self.type, self.group, choice.pattern)
        dense, codes, scales = self._codes
        if choice.format == "dense":
            return dense
        return _core.pack_codes(codes, scales, choice.format, self.type, self.group, choice.pattern)


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
    dense = _core.pack(values, "dense", type, group)
    codes, scales = dense.codes()
    return Rounded(type, group, measure(codes, group), values, (dense, codes, scales))


def _exceeds(values: NDArray[Any]) -> bool:
    return bool((np.isfinite(values) & (np.abs(values) > _F16_MAX)).any())
