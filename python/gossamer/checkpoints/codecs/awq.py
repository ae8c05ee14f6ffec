"""AWQ: 4-bit numbers packed along the outputs, eight in a word in an order of their own, with zero points by group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import GossamerError
from .claims import Claims
from .numbers import scales_of, unpack
from .quantized import Product, QuantizedTensor, zeros_of
from .tensor import Tensor, Tensors

_BITS, _FIT = 4, 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each of eight outputs in its word
_VERSIONS = ("gemm", "exllama", "ipex")  # whose files are the same


class AwqTensor(QuantizedTensor):
    """4-bit numbers in words, inputs first."""

    dtype = "int4"

    def __init__(self, words: Tensor, zero: Tensor, scale: Tensor, claims: Claims) -> None:
        """Checks shapes against each other; reads nothing.

        Raises:
            GossamerError: a part contradicts another.
        """
        for part in (words, zero):
            part.expect("I32", ndim=2)
        scale.expect("F16", "BF16", "F32", ndim=2)
        groups, rows = scale.shape
        cols = words.shape[0]
        if words.shape[1] * _FIT != rows or not rows * cols * groups:
            raise words.bad(f"has shape {list(words.shape)}, which does not fit scales of {list(scale.shape)}")
        if zero.shape != (groups, words.shape[1]):
            raise zero.bad(f"has shape {list(zero.shape)}, which does not fit scales of {list(scale.shape)}")
        claims.bits(words, [_BITS])
        self.path, self.name, self.shape = words.path, words.name, (rows, cols)
        self._words, self._zero, self._scale = words, zero, scale
        self._group = claims.group(scale, cols, groups)

    def product(self) -> Product:  # noqa: D102 - as in the base class
        scales = scales_of(self._scale).T
        zeros = zeros_of(self._zero, _ordered(self._zero).T, scales)
        return Product(_ordered(self._words).T, scales, self._group, zeros)


def _ordered(words: Tensor) -> NDArray[np.uint8]:
    rows, count = words.shape
    numbers = unpack(words.raw(), _BITS, count * _FIT).reshape(rows, count, _FIT)
    return numbers[..., _PLACES].reshape(rows, -1)


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense weight in the place of every `qweight`.

    Raises:
        GossamerError: a part is missing, contradicts another, or the config asks for a layout that there is not.
    """
    for prefix in tensors.prefixes("qweight"):
        words = tensors.pop(f"{prefix}.qweight")
        version = claims.settings.get("version", "gemm")
        if not isinstance(version, str) or version.lower() not in _VERSIONS:
            raise GossamerError(
                f"{claims.path}: version {version!r:.80} of AWQ is not supported; there are: {', '.join(_VERSIONS)}"
            )
        zero, scale = (tensors.needed(f"{prefix}.{part}", words) for part in ("qzeros", "scales"))
        tensors.put(f"{prefix}.weight", AwqTensor(words, zero, scale, claims))
        claims.found("awq")
