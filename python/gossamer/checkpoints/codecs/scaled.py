"""Integers or 8-bit floats with scales beside them: `weight` and `weight_scale`, or `weight_scale_inv`.

compressed-tensors calls them int-quantized, float-quantized, naive-quantized and mxfp8-quantized. Plain FP8 checkpoints
have a scale for each block of 128 x 128, which is called inverse and multiplied with all the same.
"""

from __future__ import annotations

from .claims import Claims
from .numbers import floats_of
from .quantized import Product, QuantizedTensor, groups_of, order_of, zeros_of
from .tensor import Tensor, Tensors

_SCALES = ("_scale_inv", "_scale")
_INTEGERS = ("I8", "I16", "I32")
_FLOATS = ("F8_E4M3", "F8_E5M2")
_PLAIN = ("F32", "F16", "BF16")


class ScaledTensor(QuantizedTensor):
    """Numbers of 8 bits or more, each on its own."""

    def __init__(
        self, values: Tensor, scale: Tensor, zero: Tensor | None, order: Tensor | None, claims: Claims
    ) -> None:
        values.expect(*_INTEGERS, *_FLOATS, ndim=(2, 3))
        self.path, self.name, self.shape = values.path, values.name, values.shape
        self.dtype = "int8" if values.dtype in _INTEGERS else "F32"
        self._values, self._scale, self._zero, self._order, self._claims = values, scale, zero, order, claims

    def product(self) -> Product:  # noqa: D102 - as in the base class
        numbers = self._values.raw()
        if self.dtype == "F32":
            numbers = floats_of(self._values, numbers)
        scales, group = groups_of(self._scale, self.shape, self._claims)
        order = order_of(self._order, self.shape[-1], scales.shape[-1])
        zeros = None
        if self._zero is not None:
            stored = self._zero.raw()
            if self._zero.dtype not in _INTEGERS and stored.any():
                raise self._zero.bad(f"is of type {self._zero.dtype} instead of {' or '.join(_INTEGERS)}")
            zeros = zeros_of(self._zero, stored, scales)
        return Product(numbers, scales, group if order is None else order, zeros)


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense tensor in the place of numbers that have scales beside them.

    Raises:
        GossamerError: a part contradicts another.
    """
    left_out = []
    for suffix in _SCALES:
        for scale_name in [name for name in tensors if name.endswith(suffix)]:
            name = scale_name.removesuffix(suffix)
            if name not in tensors or (claims.method is None and tensors[name].dtype in _PLAIN):
                continue
            scale, values = tensors.pop(scale_name), tensors.pop(name)
            zero, order = (tensors.pop(name + part, None) for part in ("_zero_point", "_g_idx"))
            if values.dtype in _PLAIN:
                tensors.put(name, values)
                left_out.append(scale_name)
            else:
                tensors.put(name, ScaledTensor(values, scale, zero, order, claims))
                claims.found("scaled")
    if left_out:
        claims.notes.append(
            f"{claims.path.parent}: {left_out[0]} ({len(left_out)} such scales) is left out: its weight is stored as "
            "floats"
        )
