"""Sparse tensors of compressed-tensors checkpoints, as releases before 0.15 wrote them: a bit mask and the non-zeros.

`sparse-bitmask` has any mask, and says where the values of a row begin; `sparse-24-bitmask` keeps two of every four.
Both are told by the tensors that are there, since configs do not tell them reliably.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..safetensors_io import SafetensorsFile

_PARTS = ("bitmask", "compressed", "row_offsets", "shape")
_LARGEST = 1 << 48  # elements; a mask for more is not read


class BitmaskTensor:
    """One sparse tensor, decoded when asked for.

    Attributes:
        name: What the tensor is called where it is dense.
        shape: Of the dense tensor.
        dtype: Of the values, by the format's name.
    """

    def __init__(self, prefix: str, parts: dict[str, SafetensorsFile]) -> None:
        """Checks the shapes of the parts against each other; reads only the dense shape.

        Raises:
            GossamerError: a part is missing, or contradicts another.
        """
        # Old releases compressed parameters, later ones the weights of modules.
        self.name = prefix if prefix.endswith((".weight", ".bias")) else f"{prefix}.weight"
        self._prefix, self._parts = prefix, parts
        for part in ("bitmask", "compressed", "shape"):
            if part not in parts:
                raise self._bad(part, "is missing")
        self._expect("bitmask", "U8")
        self._expect("shape", "I64")
        self.dtype = parts["compressed"].info(f"{prefix}.compressed").dtype
        shape = [int(size) for size in self._raw("shape").reshape(-1)]
        values = parts["compressed"].info(f"{prefix}.compressed").shape
        if "row_offsets" not in parts and len(shape) == 2 and len(values) == 2:
            shape[1] = 2 * values[1]  # some writers recorded another one
        mask = self._mask_shape()
        if len(shape) not in (1, 2) or not all(0 < size < _LARGEST for size in shape):
            raise self._bad("shape", f"{shape} is no matrix or vector")
        if mask != (*shape[:-1], -(-shape[-1] // 8)):
            raise self._bad("bitmask", f"has shape {list(mask)}, which does not fit a tensor of {shape}")
        self.shape = tuple(shape)

    def float32(self) -> NDArray[np.float32]:
        """Returns the dense tensor.

        Raises:
            GossamerError: mask, offsets and values contradict each other.
        """
        cols = self.shape[-1]
        bits = np.unpackbits(self._raw("bitmask").reshape(-1, -(-cols // 8)), axis=1, bitorder="little").view(bool)
        if bits[:, cols:].any():
            raise self._bad("bitmask", "has bits set behind the last column")
        bits = bits[:, :cols]
        counts = bits.sum(1, dtype=np.int64)
        values = self._parts["compressed"].float32(f"{self._prefix}.compressed").reshape(-1)
        if counts.sum() != values.size:
            raise self._bad("compressed", f"has {values.size} values, the bit mask {counts.sum()} bits")
        if "row_offsets" in self._parts:
            self._expect("row_offsets", "I64")
            if self._raw("row_offsets").reshape(-1).tolist() != (np.cumsum(counts) - counts).tolist():
                raise self._bad("row_offsets", "does not count the bits of the mask's rows")
        elif cols % 4 or (bits.reshape(len(bits), -1, 4).sum(2) != 2).any():
            raise self._bad("bitmask", "does not keep two of every four inputs, and there is no row_offsets")
        dense = np.zeros(bits.shape, np.float32)
        dense[bits] = values
        return dense.reshape(self.shape)

    def _raw(self, part: str) -> NDArray[Any]:
        return self._parts[part].raw(f"{self._prefix}.{part}")

    def _mask_shape(self) -> tuple[int, ...]:
        return self._parts["bitmask"].info(f"{self._prefix}.bitmask").shape

    def _expect(self, part: str, dtype: str) -> None:
        found = self._parts[part].info(f"{self._prefix}.{part}").dtype
        if found != dtype:
            raise self._bad(part, f"is of type {found} instead of {dtype}")

    def _bad(self, part: str, what: str) -> GossamerError:
        path: Path = next(iter(self._parts.values())).path
        return GossamerError(f"{path}: tensor {self._prefix}.{part} {what}")


def find_bitmask_tensors(files: dict[str, SafetensorsFile]) -> tuple[dict[str, BitmaskTensor], set[str]]:
    """Finds the sparse tensors of a checkpoint.

    Args:
        files: The file of every stored tensor.

    Returns:
        The sparse tensors by their dense names, and the stored tensors that they are made of.

    Raises:
        GossamerError: a part is missing, or contradicts another.
    """
    found: dict[str, BitmaskTensor] = {}
    used: set[str] = set()
    for prefix in _prefixes(files):
        parts = {part: files[f"{prefix}.{part}"] for part in _PARTS if f"{prefix}.{part}" in files}
        tensor = BitmaskTensor(prefix, parts)
        found[tensor.name] = tensor
        used.update(f"{prefix}.{part}" for part in parts)
    return found, used


def _prefixes(names: Iterable[str]) -> list[str]:
    return [name.removesuffix(".bitmask") for name in names if name.endswith(".bitmask")]
