"""What quantized tensors have in common: numbers times scales, which serve groups of inputs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codes import Codes, spread, tiled
from .claims import Claims
from .numbers import scales_of
from .tensor import Tensor

_BLOCK = (128, 128)


@dataclass(frozen=True)
class Product:
    """Numbers and what they are multiplied with.

    Attributes:
        numbers: [..., rows, cols], integers or floats.
        scales: [..., rows, groups].
        group: Inputs that a scale serves, 0 for all; or the group of each input.
        zeros: What is taken from the numbers first, [..., rows, groups]; None for nothing.
        transposed: Whether the dense tensor has inputs first.
    """

    numbers: NDArray[Any]
    scales: NDArray[np.float32]
    group: int | NDArray[np.int64]
    zeros: NDArray[np.integer[Any]] | None = None
    transposed: bool = False

    def centred(self) -> NDArray[Any]:
        """Returns the numbers that scales are multiplied with."""
        if self.zeros is None:
            return self.numbers
        centred: NDArray[np.int32] = self.numbers.astype(np.int32) - self._each(self.zeros.astype(np.int32))
        return centred

    def floats(self) -> NDArray[np.float32]:
        """Returns the values."""
        values = self.centred().astype(np.float32, copy=False) * self._each(self.scales)
        return np.ascontiguousarray(values.swapaxes(-1, -2)) if self.transposed else values

    def _each(self, rows: NDArray[Any]) -> NDArray[Any]:
        if isinstance(self.group, int):
            return spread(rows, self.group, self.numbers.shape[-1])
        return rows[..., self.group]


class QuantizedTensor(Tensor):
    """A tensor that is computed from numbers and scales when asked for; `dtype` is "F32" where numbers are floats."""

    @abstractmethod
    def product(self) -> Product:
        """Returns numbers and scales.

        Raises:
            GossamerError: its parts contradict each other.
        """

    def raw(self) -> NDArray[Any]:  # noqa: D102 - as in the base class, as are those below
        raise self.bad("is quantized, and something else is to be applied to it")

    def float32(self) -> NDArray[np.float32]:  # noqa: D102
        return self.product().floats()

    def codes(self) -> Codes | None:  # noqa: D102
        if self.dtype == "F32":
            return None
        made = self.product()
        codes = tiled(made.centred(), made.scales, made.group)
        return codes.turned() if codes is not None and made.transposed else codes


def groups_of(scale: Tensor, shape: tuple[int, ...], claims: Claims) -> tuple[NDArray[np.float32], int]:
    """Returns scales as [..., rows, groups], and the inputs that each serves; 0 is all of them.

    Args:
        scale: One for the whole tensor, one a row, one for some inputs of a row, or one a block.
        shape: Of the dense tensor, [..., rows, cols].
        claims: For sizes that the shapes leave open.

    Raises:
        GossamerError: its shape does not fit.
    """
    scales = scales_of(scale)
    *lead, rows, cols = shape
    if scales.size == 1:
        return np.broadcast_to(scales.reshape(1, 1), (*lead, rows, 1)), 0
    if scales.shape == (*lead, rows):
        scales = scales[..., None]
    elif scales.ndim == 1 and len(lead) == 1 and scales.shape[0] == lead[0]:  # one for each of a stack
        scales = scales[:, None, None]
    if scales.ndim != len(shape) or scales.shape[:-2] != tuple(lead) or not scales.size:
        raise scale.bad(f"has shape {list(scale.shape)}, which does not fit a tensor of {list(shape)}")
    down, across = scales.shape[-2:]
    if down == rows:
        return scales, claims.group(scale, cols, across)
    if down == across == 1:
        return np.broadcast_to(scales, (*lead, rows, 1)), 0
    blocks = claims.blocks() or [_BLOCK]
    fit = [block for block in blocks if (-(-rows // block[0]), -(-cols // block[1])) == (down, across)]
    if not fit:
        raise scale.bad(f"has shape {list(scale.shape)}, which does not fit a tensor of {list(shape)}")
    return np.repeat(scales, fit[0][0], -2)[..., :rows, :], fit[0][1] if across > 1 else 0


def zeros_of(zero: Tensor, stored: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.integer[Any]] | None:
    """Returns zero points as scales lie; None where all are zero.

    Raises:
        GossamerError: their shape is not that of the scales.
    """
    if not stored.any():
        return None
    if stored.size == 1:
        stored = stored.reshape(1)
    elif stored.ndim == scales.ndim - 1:
        stored = stored[..., None]
    try:
        return np.broadcast_to(stored, scales.shape)
    except ValueError:
        raise zero.bad(f"has shape {list(zero.shape)}, which does not fit scales of {list(scales.shape)}") from None


def order_of(order: Tensor | None, cols: int, groups: int) -> NDArray[np.int64] | None:
    """Returns the group of each input; None where inputs were not reordered.

    Raises:
        GossamerError: it has another length, or names groups that there are not.
    """
    if order is None:
        return None
    order.expect("I32", "I64")
    found = order.raw().astype(np.int64)
    if found.shape != (cols,):
        raise order.bad(f"has shape {list(order.shape)}, which does not fit {cols} inputs")
    if (found == -1).all():
        return None
    if found.min() < 0 or found.max() >= groups:
        raise order.bad(f"names groups up to {found.max()}, and there are {groups}")
    return found
