"""model.bin of CTranslate2: variables by name, scalars among them, and further names of the same ones.

All numbers are little-endian, a text is a uint16 of its bytes, the last of which is zero, and those bytes:

    uint32 version, text spec, uint32 revision
    uint32 count, and for each: text name, uint8 rank, uint32 sizes, uint8 type, uint32 bytes, and the values
    uint32 count, and for each: text other name, text name
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError, naming
from ..files import refuse_pointer
from ..safetensors_io import NAMES, TensorInfo, from_bfloat16

FILE = "model.bin"

_VERSIONS = (4, 5, 6)  # those before 4 had no types
_TYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")
_DTYPES = {name: dtype for dtype, name in NAMES.items()} | {"BF16": np.dtype("<u2")}
_MOST_DIMENSIONS = 8


class CTranslate2File:
    """An open file; arrays are views of its memory map.

    Attributes:
        path: The file.
        spec: The kind of model, as "WhisperSpec".
        tensors: What it holds that has a shape, by every name.
        scalars: The numbers among its variables.
        metadata: Nothing; it has none.
    """

    def __init__(self, path: Path) -> None:
        """Maps the file and reads where everything lies.

        Raises:
            GossamerError: it cannot be read, or is not valid; the line names the file and the variable.
        """
        self.path = path
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.scalars: dict[str, int | float] = {}
        refuse_pointer(path)
        with naming(path), path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise GossamerError(f"{path}: is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        version = self._number("<I")
        if version not in _VERSIONS:
            known = ", ".join(map(str, _VERSIONS))
            raise GossamerError(f"{path}: not a model of CTranslate2 of a version that is known ({known}): {version}")
        self.spec = self._text()
        self._number("<I")  # the revision adds variables, which are named
        for _ in range(self._number("<I")):
            self._variable(self._text())
        for _ in range(self._number("<I")):
            other, name = self._text(), self._text()
            self._refuse_twice(other)
            if name in self.tensors:
                self.tensors[other] = self.tensors[name]
            elif name in self.scalars:
                self.scalars[other] = self.scalars[name]
            else:
                raise GossamerError(f"{path}: {other} is another name of {name}, which is missing")
        if self._at != len(self._map):
            raise GossamerError(f"{path}: {len(self._map) - self._at} bytes follow the last name")

    def _variable(self, name: str) -> None:
        self._refuse_twice(name)
        rank = self._number("<B")
        if rank > _MOST_DIMENSIONS:
            raise GossamerError(f"{self.path}: {name} has {rank} dimensions")
        shape = tuple(self._number("<I") for _ in range(rank))
        kind, size = self._number("<B"), self._number("<I")
        if kind >= len(_TYPES):
            raise GossamerError(f"{self.path}: {name} is of type {kind}, which is not known")
        dtype = _TYPES[kind]
        need = math.prod(shape) * _DTYPES[dtype].itemsize
        if size != need:
            raise GossamerError(f"{self.path}: {name}: {dtype} {list(shape)} needs {need} bytes, it has {size}")
        start = self._take(size)
        self.tensors[name] = TensorInfo(dtype, shape, start, start + size)
        if not shape:
            value = self.float32(name) if dtype in ("F32", "F16", "BF16") else self.raw(name)
            self.scalars[name] = value.item()
            del self.tensors[name]

    def _refuse_twice(self, name: str) -> None:
        if name in self.tensors or name in self.scalars:
            raise GossamerError(f"{self.path}: {name} stands twice")

    def _take(self, size: int) -> int:
        start, self._at = self._at, self._at + size
        if self._at > len(self._map):
            raise GossamerError(f"{self.path}: truncated: {self._at} bytes are needed, the file has {len(self._map)}")
        return start

    def _number(self, kind: str) -> int:
        start = self._take(struct.calcsize(kind))
        return int(struct.unpack_from(kind, self._map, start)[0])

    def _text(self) -> str:
        length = self._number("<H")
        start = self._take(length)
        text = self._map[start : start + length]
        try:
            if not text.endswith(b"\0"):
                raise ValueError
            return text[:-1].decode()
        except ValueError:
            raise GossamerError(f"{self.path}: not a model of CTranslate2: bad name at byte {start}") from None

    def raw(self, name: str) -> NDArray[Any]:
        """Returns a tensor as it is stored; bfloat16 as its bits."""
        info = self.tensors[name]
        return np.frombuffer(self._map, _DTYPES[info.dtype], math.prod(info.shape), info.start).reshape(info.shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        """Returns a tensor of floats.

        Raises:
            GossamerError: it is one of whole numbers.
        """
        dtype, values = self.tensors[name].dtype, self.raw(name)
        if dtype == "BF16":
            return from_bfloat16(values)
        if dtype not in ("F32", "F16"):
            raise GossamerError(f"{self.path}: {name} is of type {dtype}, and not of floats")
        return np.ascontiguousarray(values, np.float32)
