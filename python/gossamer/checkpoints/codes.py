"""Matrices of whole numbers times scales, as integer checkpoints hold them: what is packed without rounding again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formats import GROUPS

if TYPE_CHECKING:
    from ..arch.sources import Source

_INT4 = (-8, 7)
_F16_NORMAL = 2.0**-14


@dataclass(frozen=True)
class Codes:
    """Whole numbers and scales: a value is `code * scale`.

    Attributes:
        codes: [..., rows, cols].
        scales: [..., rows, groups], finite.
        group: Inputs that a scale serves, one of `formats.GROUPS`; 0 is a whole row.
        transposed: Whether rows and cols have changed places, in both.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    group: int
    transposed: bool = False

    @property
    def type(self) -> str:
        """The narrowest type that holds every code: "int4" or "int8"."""
        low, high = int(self.codes.min(initial=0)), int(self.codes.max(initial=0))
        return "int4" if _INT4[0] <= low and high <= _INT4[1] else "int8"

    def floats(self) -> NDArray[np.float32]:
        """Returns the values."""
        if self.transposed:
            return np.ascontiguousarray(self.turned().floats().swapaxes(-1, -2))
        values: NDArray[np.float32] = self.codes * spread(self.scales, self.group, self.codes.shape[-1])
        return values

    def turned(self) -> Codes:
        """Returns the same with rows and cols exchanged."""
        return Codes(self.codes.swapaxes(-1, -2), self.scales.swapaxes(-1, -2), self.group, not self.transposed)

    def half_scales(self, *, exact: bool) -> NDArray[np.float16] | None:
        """Returns the scales as packed weights hold them.

        Args:
            exact: Whether no scale may change; otherwise each may by half a unit in its last place.

        Returns:
            float16; None where that is not possible.
        """
        with np.errstate(over="ignore"):
            halves = self.scales.astype(np.float16)
        same = halves.astype(np.float32) == self.scales
        if exact:
            return halves if same.all() else None
        near = np.isfinite(halves) & (same | (np.abs(self.scales) >= _F16_NORMAL))
        return halves if near.all() else None

    def through(self, source: Source) -> Codes | None:
        """Returns a canonical matrix of those, as `Source.read` does for floats; None where it is no such product."""
        if source.plus or source.transpose != self.transposed or self.codes.shape != source.shape:
            return None
        codes: Any = self.codes
        scales = replace(source, shape=self.scales.shape).read(self.scales)
        return Codes(np.ascontiguousarray(source.read(codes)), np.ascontiguousarray(scales), self.group)


def spread(scales: NDArray[Any], group: int, cols: int) -> NDArray[Any]:
    """Returns a scale for every column, or one that serves all of them."""
    return np.repeat(scales, group, -1)[..., :cols] if group else scales


def tiled(
    values: NDArray[np.signedinteger[Any]], scales: NDArray[np.float32], group: int | NDArray[np.int64]
) -> Codes | None:
    """Returns whole numbers and scales as codes; None where they are beyond int8, or no packed weight has such groups.

    Args:
        values: [..., rows, cols].
        scales: [..., rows, groups].
        group: Inputs that a scale serves, any number, with 0 for a whole row; or the scale of each column.
    """
    cols = values.shape[-1]
    if not -128 <= int(values.min(initial=0)) <= int(values.max(initial=0)) <= 127:
        return None
    codes = values.astype(np.int8)
    if isinstance(group, int) and scales.shape[-1] == 1:
        return Codes(codes, scales, 0)
    serves = np.arange(cols) // group if isinstance(group, int) else group
    if scales.shape[-1] > 1 and (serves == serves[0]).all():
        return Codes(codes, np.ascontiguousarray(scales[..., serves[:1]]), 0)
    for size in sorted(GROUPS[1:], reverse=True):
        first = serves[::size]
        if (np.repeat(first, size)[:cols] == serves).all():
            return Codes(codes, np.ascontiguousarray(scales[..., first]), size)
    return None
