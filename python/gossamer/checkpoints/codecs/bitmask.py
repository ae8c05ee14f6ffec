"""Sparse tensors of compressed-tensors checkpoints, as releases before 0.15 wrote them: a bit mask and the non-zeros.

`sparse-bitmask` has any mask, and says where the values of a row begin; `sparse-24-bitmask` keeps two of every four.
Both are told by the tensors that are there, since configs do not tell them reliably. Values may be quantized: codecs
that come later apply their scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .claims import Claims
from .numbers import floats_of
from .tensor import Tensor, Tensors

_LARGEST = 1 << 48  # elements; a mask for more is not read


class BitmaskTensor(Tensor):
    """One sparse tensor, decoded when asked for."""

    def __init__(self, values: Tensor, mask: Tensor, shape: Tensor, offsets: Tensor | None) -> None:
        """Checks the shapes of the parts against each other; reads only the dense shape.

        Raises:
            GossamerError: a part contradicts another.
        """
        self.path, self.name, self.dtype = values.path, values.name, values.dtype
        self._values, self._mask, self._offsets = values, mask, offsets
        mask.expect("U8")
        shape.expect("I64")
        sizes = [int(size) for size in shape.raw().reshape(-1)]
        if offsets is None and len(sizes) == 2 and len(values.shape) == 2:
            sizes[1] = 2 * values.shape[1]  # some writers recorded another one
        if len(sizes) not in (1, 2) or not all(0 < size < _LARGEST for size in sizes):
            raise shape.bad(f"{sizes} is no matrix or vector")
        if mask.shape != (*sizes[:-1], -(-sizes[-1] // 8)):
            raise mask.bad(f"has shape {list(mask.shape)}, which does not fit a tensor of {sizes}")
        self.shape = tuple(sizes)

    def raw(self) -> NDArray[Any]:  # noqa: D102 - as in the base class, as is the one below
        cols = self.shape[-1]
        bits = np.unpackbits(self._mask.raw().reshape(-1, -(-cols // 8)), axis=1, bitorder="little").view(bool)
        if bits[:, cols:].any():
            raise self._mask.bad("has bits set behind the last column")
        bits = bits[:, :cols]
        counts = bits.sum(1, dtype=np.int64)
        values = self._values.raw().reshape(-1)
        if counts.sum() != values.size:
            raise self._values.bad(f"has {values.size} values, the bit mask {counts.sum()} bits")
        if self._offsets is not None:
            self._offsets.expect("I64")
            if self._offsets.raw().reshape(-1).tolist() != (np.cumsum(counts) - counts).tolist():
                raise self._offsets.bad("does not count the bits of the mask's rows")
        elif cols % 4 or (bits.reshape(len(bits), -1, 4).sum(2) != 2).any():
            raise self._mask.bad("does not keep two of every four inputs, and there is no row_offsets")
        dense = np.zeros(bits.shape, values.dtype)
        dense[bits] = values
        return dense.reshape(self.shape)

    def float32(self) -> NDArray[np.float32]:  # noqa: D102
        return floats_of(self, self.raw())


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense tensor in the place of every bit mask and its values.

    Raises:
        GossamerError: a part is missing, or contradicts another.
    """
    prefixes = tensors.prefixes("bitmask")
    # Old releases compressed parameters, scales and biases among them; later ones the weights of modules.
    parameters = any(prefix.endswith((".weight", ".bias")) for prefix in prefixes)
    for prefix in prefixes:
        mask = tensors.pop(f"{prefix}.bitmask")
        values, shape = (tensors.needed(f"{prefix}.{part}", mask) for part in ("compressed", "shape"))
        name = prefix if parameters else f"{prefix}.weight"
        tensors.put(name, BitmaskTensor(values, mask, shape, tensors.pop(f"{prefix}.row_offsets", None)))
        claims.found("sparse")
