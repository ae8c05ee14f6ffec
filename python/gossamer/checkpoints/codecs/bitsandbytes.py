"""bitsandbytes: rows of int8 with their largest value, and 4-bit codes of a table with the largest value of each block.

Tables (nf4, fp4) are stored beside the codes. Their values are not evenly spaced and are never rounded again. Largest
values of blocks may be quantized themselves, as 8-bit codes of another table.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import parse_json
from .claims import Claims
from .numbers import scales_of
from .quantized import Product, QuantizedTensor
from .tensor import Tensor, Tensors

_STATE = "quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_MOST_STATE = 4096  # bytes
_LARGEST = 1 << 40  # elements


class Int8Tensor(QuantizedTensor):
    """Rows of int8 whose largest value is stored for 127."""

    dtype = "int8"

    def __init__(self, values: Tensor, largest: Tensor) -> None:
        values.expect("I8", ndim=2)
        largest.expect("F32", ndim=1)
        if largest.shape != values.shape[:1]:
            raise largest.bad(f"has shape {list(largest.shape)}, and {values.name} has {list(values.shape)}")
        self.path, self.name, self.shape = values.path, values.name, values.shape
        self._values, self._largest = values, largest

    def product(self) -> Product:  # noqa: D102 - as in the base class
        return Product(self._values.raw(), scales_of(self._largest)[:, None] / np.float32(127), 0)


class TableTensor(Tensor):
    """4-bit codes of a table, the first of two in the high bits, over the matrix as one row."""

    dtype = "F32"

    def __init__(self, values: Tensor, state: Tensor, tensors: Tensors, kind: str) -> None:
        """Takes the parts out; reads only the state.

        Raises:
            GossamerError: a part is missing, or contradicts another.
        """
        name, self._kind = values.name, kind
        self._state = _read_state(state)
        shape = self._state.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and 0 < size < _LARGEST for size in shape):
            raise state.bad(f"has the shape {shape!r:.80}")
        self.path, self.name, self.shape = values.path, name, tuple(shape)
        values.expect("U8")
        if -(-math.prod(shape) // 2) != math.prod(values.shape):
            raise values.bad(f"has shape {list(values.shape)}, which does not fit a tensor of {shape}")
        self._values, self._state_tensor = values, state
        self._table, self._largest = (tensors.needed(f"{name}.{part}", values) for part in ("quant_map", "absmax"))
        self._nested = None
        if f"{name}.nested_absmax" in tensors:
            parts = ("nested_absmax", "nested_quant_map")
            self._nested = [tensors.needed(f"{name}.{part}", values) for part in parts]

    @property
    def form(self) -> str:  # noqa: D102 - as in the base class, as are those below
        return self._kind

    def raw(self) -> NDArray[Any]:  # noqa: D102
        raise self.bad("is quantized, and something else is to be applied to it")

    def float32(self) -> NDArray[np.float32]:  # noqa: D102
        count = math.prod(self.shape)
        packed = self._values.raw().reshape(-1)
        codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:count]
        if self._table.shape != (16,):
            raise self._table.bad(f"has shape {list(self._table.shape)} instead of 16 values")
        values = scales_of(self._table)[codes]
        return (values * _each(self._block_scales(), self._number("blocksize"), count, self._largest)).reshape(
            self.shape
        )

    def _block_scales(self) -> NDArray[np.float32]:
        if self._nested is None:
            self._largest.expect("F32", ndim=1)
            return scales_of(self._largest)
        self._largest.expect("U8", ndim=1)
        largest, table = self._nested
        if table.shape != (256,):
            raise table.bad(f"has shape {list(table.shape)} instead of 256 values")
        values = scales_of(table)[self._largest.raw()]
        offset = self._state.get("nested_offset")
        if not isinstance(offset, (int, float)) or not math.isfinite(offset):
            raise self._state_tensor.bad(f"has nested_offset {offset!r:.80}")
        scales = _each(scales_of(largest), self._number("nested_blocksize"), len(values), largest)
        found: NDArray[np.float32] = values * scales + np.float32(offset)
        return found

    def _number(self, key: str) -> int:
        value = self._state.get(key)
        if type(value) is not int or value < 1:
            raise self._state_tensor.bad(f"has {key} {value!r:.80}")
        return value


def _each(scales: NDArray[np.float32], block: int, count: int, where: Tensor) -> NDArray[np.float32]:
    """The scale of each of `count` values."""
    if scales.shape != (-(-count // block),):
        raise where.bad(f"has shape {list(where.shape)}, which does not fit {count} values in blocks of {block}")
    return np.repeat(scales, block)[:count]


def _read_state(state: Tensor) -> dict[str, Any]:
    state.expect("U8", ndim=1)
    if state.shape[0] > _MOST_STATE:
        raise state.bad(f"has {state.shape[0]} bytes, more than {_MOST_STATE}")
    try:
        found = parse_json(bytes(state.raw()).decode())
    except ValueError as error:
        raise state.bad(f"holds no JSON: {error}") from None
    if not isinstance(found, dict):
        raise state.bad("holds no JSON object")
    return found


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the dense weight in the place of every quantized one.

    Raises:
        GossamerError: a part is missing, or contradicts another.
    """
    for prefix in tensors.prefixes("SCB"):
        largest = tensors.pop(f"{prefix}.SCB")
        values, order = tensors.needed(f"{prefix}.weight", largest), tensors.pop(f"{prefix}.weight_format", None)
        if order is not None and order.raw().any():
            raise order.bad("asks for another order than that of rows")
        tensors.put(f"{prefix}.weight", Int8Tensor(values, largest))
        claims.found("bitsandbytes")
    for part in [name for name in tensors if f".{_STATE}" in name]:
        name, kind = part.split(f".{_STATE}", 1)
        state = tensors.pop(part)
        if kind not in _KINDS:
            raise state.bad(f"is of no type that is known; there are: {', '.join(_KINDS)}")
        tensors.put(name, TableTensor(tensors.needed(name, state), state, tensors, kind))
        claims.found("bitsandbytes")
