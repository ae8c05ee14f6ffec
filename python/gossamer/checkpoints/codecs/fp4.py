"""4-bit floats, two in a byte, low bits first: nvfp4 and mxfp4, as compressed-tensors, ModelOpt and gpt_oss store them.

Their values are not evenly spaced; doubled, they are whole numbers up to 12, which is how they are packed where their
scales serve 32 inputs or more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .claims import Claims
from .numbers import FP4_DOUBLED, scales_of
from .quantized import Product, QuantizedTensor
from .tensor import Tensor, Tensors

_NV = 16
_GROUPS = {"F8_E4M3": _NV, "U8": 32, "F8_E8M0": 32}  # inputs that a scale of such a type serves


class Fp4Tensor(QuantizedTensor):
    """4-bit floats with a scale for some inputs, and perhaps one for all."""

    dtype = "int8"

    def __init__(self, values: Tensor, scale: Tensor, whole: Tensor | None, *, divide: bool, stacked: bool) -> None:
        """Checks shapes against each other; reads nothing.

        Args:
            values: [..., rows, bytes]; where `stacked`, [..., rows, groups, bytes of one].
            scale: [..., rows, groups].
            whole: A factor of all scales.
            divide: Whether scales are divided by it.
            stacked: Whether bytes lie by group, and the dense tensor has inputs first.

        Raises:
            GossamerError: a part contradicts another.
        """
        values.expect("U8")
        scale.expect(*_GROUPS)
        self._group = _GROUPS[scale.dtype]
        size = (*values.shape[: len(values.shape) - 1 - stacked], 2 * int(np.prod(values.shape[-1 - stacked :])))
        if len(size) not in (2, 3) or scale.shape != (*size[:-1], -(-size[-1] // self._group)) or not all(size):
            raise scale.bad(f"has shape {list(scale.shape)}, which does not fit {values.name} of {list(values.shape)}")
        if whole is not None and np.prod(whole.shape) != 1:
            raise whole.bad(f"has shape {list(whole.shape)} instead of one value")
        self.path, self.name = values.path, values.name
        self.shape = (*size[:-2], size[-1], size[-2]) if stacked else size
        self._size, self._divide, self._stacked = size, divide, stacked
        self._values, self._scale, self._whole = values, scale, whole

    @property
    def form(self) -> str:  # noqa: D102 - as in the base class, as is the one below
        return "nvfp4" if self._group == _NV else "mxfp4"

    def product(self) -> Product:  # noqa: D102
        packed = self._values.raw().reshape(*self._size[:-1], -1)
        numbers = np.empty(self._size, np.int8)
        numbers[..., 0::2] = FP4_DOUBLED[packed & 15]
        numbers[..., 1::2] = FP4_DOUBLED[packed >> 4]
        scales = scales_of(self._scale)
        if self._whole is not None:
            factor = scales_of(self._whole).reshape(())
            if self._divide and not factor:
                raise self._whole.bad("is zero, and scales are divided by it")
            scales = scales / factor if self._divide else scales * factor
        halved: NDArray[np.float32] = scales * np.float32(0.5)
        return Product(numbers, halved, self._group, transposed=self._stacked)


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense tensor in the place of every one of 4-bit floats.

    Raises:
        GossamerError: a part is missing, or contradicts another.
    """
    for part in [name for name in tensors if name.endswith("_packed") and tensors[name].dtype == "U8"]:
        name = part.removesuffix("_packed")
        values = tensors.pop(part)
        scale, whole = tensors.needed(f"{name}_scale", values), tensors.pop(f"{name}_global_scale", None)
        tensors.put(name, Fp4Tensor(values, scale, whole, divide=True, stacked=False))
        claims.found("fp4")
    for part in [name for name in tensors if name.endswith("_scale_2")]:
        name = part.removesuffix("_scale_2")
        whole = tensors.pop(part)
        values, scale = (tensors.needed(name + suffix, whole) for suffix in ("", "_scale"))
        tensors.put(name, Fp4Tensor(values, scale, whole, divide=False, stacked=False))
        claims.found("fp4")
    for part in [name for name in tensors if name.endswith("_blocks")]:
        name = part.removesuffix("_blocks")
        values = tensors.pop(part)
        tensors.put(name, Fp4Tensor(values, tensors.needed(f"{name}_scales", values), None, divide=False, stacked=True))
        claims.found("mxfp4")
