"""Masks that were not made permanent, as torch's pruning leaves them: `weight_orig` and `weight_mask`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .claims import Claims
from .tensor import Tensor, Tensors

_MASKS = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32")
_VALUES = ("F32", "F16", "BF16")


class MaskedTensor(Tensor):
    """A tensor whose zeros stand in another."""

    def __init__(self, values: Tensor, mask: Tensor) -> None:
        values.expect(*_VALUES)
        mask.expect(*_MASKS)
        if mask.shape != values.shape:
            raise mask.bad(f"has shape {list(mask.shape)}, and {values.name} has {list(values.shape)}")
        self.path, self.name, self.shape, self.dtype = values.path, values.name, values.shape, values.dtype
        self._values, self._mask = values, mask

    def raw(self) -> NDArray[Any]:  # noqa: D102 - as in the base class, as is the one below
        stored = self._values.raw()
        return np.where(self._kept(), stored, np.zeros((), stored.dtype))

    def float32(self) -> NDArray[np.float32]:  # noqa: D102
        return np.where(self._kept(), self._values.float32(), np.float32(0))

    def _kept(self) -> NDArray[np.bool_]:
        floats = self._mask.dtype in _VALUES
        mask = self._mask.float32() if floats else self._mask.raw()
        if ((mask != 0) & (mask != 1)).any():
            raise self._mask.bad("has values besides 0 and 1")
        return np.asarray(mask != 0)


def decode(tensors: Tensors, claims: Claims) -> None:
    """Puts the masked tensor in the place of every mask and what it goes with.

    Raises:
        GossamerError: a part is missing, or contradicts another.
    """
    for part in [name for name in tensors if name.endswith("_orig")]:
        name = part.removesuffix("_orig")
        values = tensors.pop(part)
        tensors.put(name, MaskedTensor(values, tensors.needed(f"{name}_mask", values)))
        claims.found("masked")
