"""`marlin-24` of compressed-tensors: 2:4 sparse 4- or 8-bit numbers in the order that a GPU kernel reads them in.

Of a matrix [N, K], what is kept is turned to [K / 2, N] and cut into tiles of 16 x 16; of tiles in a row, 1024 numbers
at a time are put in the kernel's order and packed. `meta` has, for each four inputs, the places of the two that are
kept, in the order of CUTLASS. Scales are turned, too, and where they serve groups put in another order, 64 at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .claims import Claims
from .numbers import scales_of, unpack
from .quantized import Product, QuantizedTensor
from .tensor import Tensor, Tensors

_TILE = 16
_SCALE_ORDER = np.add.outer(np.arange(0, 64, 8), [0, 4, 1, 5, 2, 6, 3, 7]).reshape(-1)
_WITHIN_WORD = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
_GROUP = 128


def number_order(bits: int) -> NDArray[np.int64]:
    """Returns which of 1024 numbers, four tiles, comes at each place."""
    thread, column, half, pair, high = np.ix_(*(np.arange(size) for size in (32, 4, 2, 2, 2)))
    row = 2 * (thread % 4) + 8 * pair + high
    place = thread // 4
    order = 16 * row + 256 * (place // 2) + 8 * (place % 2) + 4 * half + column
    return order.reshape(-1, 32 // bits)[:, _WITHIN_WORD[bits]].reshape(-1)


def meta_order(rows: int, cols: int) -> NDArray[np.int64]:
    """Returns where the 16 bits of each row and each 16 inputs lie in `meta`, [rows, cols]."""
    row, col = np.arange(rows)[:, None], np.arange(cols)[None, :]
    row = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row % 64 // 8 * 4
    swap = (row % 2 == 0) * (col % 2 == 1) * 1 - (row % 2 == 1) * (col % 2 == 0) * 1
    row, col = row + swap, col - swap
    order: NDArray[np.int64] = col // 2 * 2 * rows + row * 2 + col % 2
    return order


class Marlin24Tensor(QuantizedTensor):
    """Packed numbers with places."""

    def __init__(self, words: Tensor, scale: Tensor, meta: Tensor, claims: Claims) -> None:
        """Checks shapes against each other; reads nothing.

        Raises:
            GossamerError: a part contradicts another.
        """
        words.expect("I32", ndim=2)
        scale.expect("F16", "BF16", "F32", ndim=2)
        meta.expect("I16", ndim=2)
        groups, rows = scale.shape
        cols = words.shape[0] * 2 * _TILE
        self._bits = claims.bits(words, [bits for bits in (4, 8) if words.shape[1] * 32 == rows * _TILE * bits])
        if rows % 64 or not rows * cols * groups:
            raise words.bad(f"has shape {list(words.shape)}, which does not fit scales of {list(scale.shape)}")
        if meta.shape != (cols // 32, 2 * rows):
            raise meta.bad(f"has shape {list(meta.shape)}, which does not fit a tensor of {[rows, cols]}")
        if groups not in (1, -(-cols // _GROUP)):
            raise scale.bad(f"has shape {list(scale.shape)}, which does not fit groups of {_GROUP} or rows")
        self.path, self.name, self.shape = words.path, words.name, (rows, cols)
        self.dtype = "int4" if self._bits == 4 else "int8"
        self._words, self._scale, self._meta = words, scale, meta

    def product(self) -> Product:  # noqa: D102 - as in the base class
        rows, cols = self.shape
        stored = unpack(self._words.raw(), self._bits, rows * _TILE).reshape(-1, 1024)
        tiles = np.empty_like(stored)
        tiles[:, number_order(self._bits)] = stored
        turned = tiles.reshape(-1, rows // _TILE, _TILE, _TILE).swapaxes(1, 2).reshape(cols // 2, rows)
        kept = (turned.T.astype(np.int16) - (1 << self._bits - 1)).astype(np.int8)
        words = self._meta.raw().reshape(-1).view(np.uint16)[meta_order(rows, cols // 16)]
        places = (words[..., None] >> np.arange(0, 16, 2, dtype=np.uint16)) & np.uint16(3)
        places = places.reshape(rows, cols // 4, 2)
        if (places[..., 0] >= places[..., 1]).any():
            raise self._meta.bad("has places that do not rise")
        numbers = np.zeros((rows, cols // 4, 4), np.int8)
        np.put_along_axis(numbers, places.astype(np.int64), kept.reshape(rows, cols // 4, 2), 2)
        scales = scales_of(self._scale)
        if len(scales) > 1 and cols // 2 > _GROUP:
            ordered = np.empty_like(scales).reshape(-1, 64)
            ordered[:, _SCALE_ORDER] = scales.reshape(-1, 64)
            scales = ordered.reshape(scales.shape)
        return Product(numbers.reshape(rows, cols), np.ascontiguousarray(scales.T), _GROUP if len(scales) > 1 else 0)


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense weight in the place of every one in that order.

    Raises:
        GossamerError: a part is missing, or contradicts another.
    """
    for prefix in tensors.prefixes("scale_packed"):
        scale = tensors.pop(f"{prefix}.scale_packed")
        words, meta = (tensors.needed(f"{prefix}.{part}", scale) for part in ("weight_packed", "meta"))
        tensors.put(f"{prefix}.weight", Marlin24Tensor(words, scale, meta, claims))
        claims.found("marlin-24")
