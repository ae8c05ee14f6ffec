"""`pack-quantized` of compressed-tensors: whole numbers of 1 to 8 bits, several in a word of 32.

Numbers are stored with half their range added. Widths that do not divide 32 have two layouts: up to release 0.17 a word
holds as many as fit whole, from 0.18 on numbers straddle words. The number of words tells which.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .claims import Claims
from .numbers import unpack
from .quantized import Product, QuantizedTensor, groups_of, order_of, zeros_of
from .tensor import Tensor, Tensors

_LARGEST = 1 << 40  # elements
_WIDTHS = range(1, 9)


def words_of(count: int, bits: int, straddle: bool) -> int:
    """Returns how many words so many numbers take."""
    return -(-count * bits // 32) if straddle else -(-count // (32 // bits))


class PackedTensor(QuantizedTensor):
    """Whole numbers in words."""

    def __init__(
        self,
        words: Tensor,
        shape: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        order: Tensor | None,
        claims: Claims,
    ) -> None:
        """Checks shapes against each other; reads only the dense shape.

        Raises:
            GossamerError: a part contradicts another.
        """
        words.expect("I32", ndim=(2, 3))
        shape.expect("I64", "I32", ndim=1)
        sizes = tuple(int(size) for size in shape.raw())
        if sizes[:-1] != words.shape[:-1] and (len(words.shape), sizes) != (3, (*words.shape[1:2], *sizes[1:])):
            raise shape.bad(f"{list(sizes)} does not fit {words.name}, which has shape {list(words.shape)}")
        self.shape = (*words.shape[:-1], sizes[-1])
        if not 0 < sizes[-1] < _LARGEST or not all(self.shape):
            raise shape.bad(f"{list(sizes)} is no matrix")
        fit = {
            bits: straddle
            for bits in _WIDTHS
            for straddle in (False, True)
            if words_of(sizes[-1], bits, straddle) == words.shape[-1]
        }
        self._bits = claims.bits(words, list(fit))
        self._straddle = fit[self._bits]
        self.path, self.name = words.path, words.name
        self.dtype = "int4" if self._bits <= 4 else "int8"
        self._words, self._scale, self._zero, self._order, self._claims = words, scale, zero, order, claims

    def product(self) -> Product:  # noqa: D102 - as in the base class
        numbers = unpack(self._words.raw(), self._bits, self.shape[-1], straddle=self._straddle)
        scales, group = groups_of(self._scale, self.shape, self._claims)
        order = order_of(self._order, self.shape[-1], scales.shape[-1])
        zeros = None
        if self._zero is not None:
            zeros = zeros_of(self._zero, self._points(self._zero), scales)
        return Product(self._signed(numbers), scales, group if order is None else order, zeros)

    def _points(self, zero: Tensor) -> NDArray[np.integer[Any]]:
        """Zero points as scales lie; releases up to 0.8 did not pack them."""
        zero.expect("I32", "I8", ndim=len(self.shape))
        if zero.dtype == "I8":
            return zero.raw()
        words = zero.raw().swapaxes(-1, -2)  # packed along outputs
        if words.shape[-1] != words_of(self.shape[-2], self._bits, self._straddle):
            raise zero.bad(f"has shape {list(zero.shape)}, which does not fit {self.shape[-2]} outputs")
        return self._signed(unpack(words, self._bits, self.shape[-2], straddle=self._straddle).swapaxes(-1, -2))

    def _signed(self, stored: NDArray[np.uint8]) -> NDArray[np.int8]:
        return (stored.astype(np.int16) - (1 << self._bits - 1)).astype(np.int8)


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense tensor in the place of every packed one.

    Raises:
        GossamerError: a part is missing, or contradicts another.
    """
    for part in [name for name in tensors if name.endswith("_packed") and tensors[name].dtype == "I32"]:
        name = part.removesuffix("_packed")
        if f"{name}_shape" not in tensors and f"{name}_scale" not in tensors:
            continue
        words = tensors.pop(part)
        shape, scale = (tensors.needed(name + suffix, words) for suffix in ("_shape", "_scale"))
        zero, order = (tensors.pop(name + suffix, None) for suffix in ("_zero_point", "_g_idx"))
        tensors.put(name, PackedTensor(words, shape, scale, zero, order, claims))
        claims.found("pack-quantized")
