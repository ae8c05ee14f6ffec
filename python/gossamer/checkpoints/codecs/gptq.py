"""GPTQ: whole numbers of 2, 3, 4 or 8 bits, packed along the inputs, with scales and zero points by group.

`g_idx` has the group of each input. Zero points of the first version are stored with one taken off, those of the second
as they are; only the config tells which.
"""

from __future__ import annotations

import numpy as np

from ...errors import GossamerError
from .claims import Claims
from .numbers import scales_of, unpack
from .quantized import Product, QuantizedTensor, order_of, zeros_of
from .tensor import Tensor, Tensors

_WIDTHS = (2, 3, 4, 8)
_OFFSETS = {"gptq": 1, "gptq_v2": 0}


class GptqTensor(QuantizedTensor):
    """Whole numbers in words, inputs first."""

    def __init__(
        self, words: Tensor, zero: Tensor, scale: Tensor, order: Tensor | None, offset: int, claims: Claims
    ) -> None:
        """Checks shapes against each other; reads nothing.

        Raises:
            GossamerError: a part contradicts another.
        """
        for part in (words, zero):
            part.expect("I32", ndim=2)
        scale.expect("F16", "BF16", "F32", ndim=2)
        groups, rows = scale.shape
        fit = [bits for bits in _WIDTHS if zero.shape == (groups, -(-rows * bits // 32))]
        self._bits = claims.bits(zero, fit)
        cols = words.shape[0] * 32 // self._bits
        if words.shape[1] != rows or cols * self._bits != words.shape[0] * 32 or not cols * groups:
            raise words.bad(f"has shape {list(words.shape)}, which does not fit scales of {list(scale.shape)}")
        self.path, self.name, self.shape = words.path, words.name, (rows, cols)
        self.dtype = "int4" if self._bits <= 4 else "int8"
        self._words, self._zero, self._scale, self._order, self._offset = words, zero, scale, order, offset
        self._claims = claims
        if order is None:
            claims.group(scale, cols, groups)  # what does not fit is told at once

    def product(self) -> Product:  # noqa: D102 - as in the base class
        rows, cols = self.shape
        numbers = unpack(self._words.raw().T, self._bits, cols)
        scales = scales_of(self._scale).T
        order = order_of(self._order, cols, scales.shape[1])
        stored = unpack(self._zero.raw(), self._bits, rows).T.astype(np.int16) + self._offset
        stored &= (1 << self._bits) - 1  # zero, with one taken off, is stored as the largest
        group = self._claims.group(self._scale, cols, scales.shape[1]) if order is None else order
        return Product(numbers, scales, group, zeros_of(self._zero, stored, scales))


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense weight in the place of every `qweight` that has its outputs whole, as GPTQ does.

    Raises:
        GossamerError: a part is missing, contradicts another, or the config asks for a layout that there is not.
    """
    for prefix in tensors.prefixes("qweight"):
        words, scale = tensors[f"{prefix}.qweight"], tensors.get(f"{prefix}.scales")
        if scale is None or words.shape[-1:] != scale.shape[-1:]:
            continue
        said = claims.settings.get("checkpoint_format") or claims.settings.get("format") or "gptq"
        if claims.method is None:
            raise GossamerError(
                f"{words.path}: tensor {words.name} is of a GPTQ checkpoint, and no config says of which"
            )
        if not isinstance(said, str) or said not in _OFFSETS:
            raise GossamerError(
                f"{claims.path}: checkpoint_format {said!r:.80} is not supported; there are: {', '.join(_OFFSETS)}"
            )
        del tensors[words.name], tensors[scale.name]
        zero, order = tensors.needed(f"{prefix}.qzeros", words), tensors.pop(f"{prefix}.g_idx", None)
        tensors.put(f"{prefix}.weight", GptqTensor(words, zero, scale, order, _OFFSETS[said], claims))
        claims.found("gptq")
