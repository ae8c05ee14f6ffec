"""Safetensors files: strict reading through a memory map, and a streaming writer that aligns every tensor."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import GossamerError, naming
from .files import parse_json, refuse_pointer
from .part_files import Part

# The element types of the format, as they lie in the file; those that numpy lacks are read as their bits.
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in _DTYPES.items() if name not in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "BF16")}

_MAX_HEADER = 16_000_000  # bytes, 100,000 tensors; the format itself has 100,000,000, which take gigabytes
_MAX_DIMENSIONS = 8
_CHUNK = 16 << 20  # bytes a write call, so that Ctrl-C is prompt
_PAD = "__pad."  # tensors that fill the gaps which alignment needs: the format allows no holes
_ENTRY = 250  # header bytes that a tensor and the filler before it need at most, names not counted


def from_bfloat16(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the values of bfloat16 numbers out of their bits, uint16 of any shape."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its type by the format's name, its shape, and its bytes [start, stop) in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """An open file; arrays are views of its memory map and keep it alive.

    Attributes:
        path: The file.
        metadata: The header's free text entries.
        tensors: What the file holds, without fillers, in file order.
    """

    def __init__(self, path: str | Path) -> None:
        """Maps the file and checks its whole header.

        Raises:
            GossamerError: the file cannot be read, or its header is not valid; the line names the file and the tensor.
        """
        self.path = Path(path)
        with naming(self.path), self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise GossamerError(f"{self.path}: truncated: {size} bytes, too few for a safetensors header")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        refuse_pointer(self.path)
        length = int.from_bytes(self._map[:8], "little")
        if length > _MAX_HEADER:
            raise GossamerError(f"{self.path}: not a safetensors file: its header would have {length} bytes")
        if 8 + length > size:
            raise GossamerError(f"{self.path}: truncated: the header has {length} bytes, the file only {size}")
        header = _parse_header(self.path, self._map[8 : 8 + length])
        self.metadata = _metadata(self.path, header.pop("__metadata__", {}))
        found = {name: _tensor_info(self.path, name, entry, 8 + length) for name, entry in header.items()}
        ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
        _check_cover(self.path, ordered, 8 + length, size)
        self.tensors = {name: info for name, info in ordered.items() if not name.startswith(_PAD)}

    def info(self, name: str) -> TensorInfo:
        """Returns type, shape and place of a tensor.

        Raises:
            GossamerError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise GossamerError(f"{self.path}: tensor {name} is missing") from None

    def raw(self, name: str) -> NDArray[Any]:
        """Returns a read-only view of a tensor as it is stored; BF16 and the F8 types as unsigned bits."""
        info = self.info(name)
        dtype = _DTYPES[info.dtype]
        count = (info.stop - info.start) // dtype.itemsize
        return np.frombuffer(self._map, dtype, count, info.start).reshape(info.shape)

    def float32(self, name: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Returns a tensor, or some of its rows, as float32; an F32 one is a read-only view of the file.

        What is copied no longer lies in this process's memory as it is stored, however large the file.

        Raises:
            GossamerError: the tensor is missing or of another type than F32, F16 or BF16.
        """
        info = self.info(name)
        values = self.raw(name)[rows]
        if info.dtype == "F32":
            return np.require(values, np.float32, "A")
        if info.dtype == "F16":
            copied = values.astype(np.float32)
        elif info.dtype == "BF16":
            copied = from_bfloat16(values)
        else:
            raise GossamerError(f"{self.path}: tensor {name} is of type {info.dtype}; weights must be F32, F16 or BF16")
        self._drop(info, rows)
        return copied

    def give_back(self) -> None:
        """Gives back the memory of all that was read; who reads it later finds it in the file."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _drop(self, info: TensorInfo, rows: slice) -> None:
        """Gives back whole pages of some rows; who reads them later finds them in the file."""
        count = info.shape[0] if info.shape else 1
        first, last, _ = rows.indices(count)
        row = (info.stop - info.start) // max(count, 1)
        start = -(-(info.start + first * row) // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (info.start + last * row) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with {")
        header = parse_json(text.decode("utf-8"))
    except ValueError as error:
        raise GossamerError(f"{path}: not a safetensors file: bad header: {error}") from None
    assert isinstance(header, dict)
    return header


def _metadata(path: Path, values: Any) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise GossamerError(f"{path}: bad header: __metadata__ must map names to text")
    return values


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """Checks one entry of the header; `data` is the offset in the file that data_offsets count from."""
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise GossamerError(f"{where}: the header entry must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise GossamerError(f"{where}: unknown type {dtype!r}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise GossamerError(f"{where}: bad shape {shape!r:.80}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise GossamerError(f"{where}: bad data_offsets {offsets!r:.80}")
    need = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != need:
        raise GossamerError(f"{where}: {dtype} {shape} needs {need} bytes, data_offsets give {offsets[1] - offsets[0]}")
    return TensorInfo(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _check_cover(path: Path, ordered: dict[str, TensorInfo], start: int, size: int) -> None:
    """Tensors must follow each other without overlap or hole, from the header to the end of the file."""
    place = start
    for name, info in ordered.items():
        if info.start != place:
            what = "overlaps the tensor before it" if info.start < place else "leaves a hole before it"
            raise GossamerError(f"{path}: tensor {name}: {what} (data begins at byte {info.start}, not {place})")
        if info.stop > size:
            raise GossamerError(f"{path}: truncated: tensor {name} ends at byte {info.stop}, the file at {size}")
        place = info.stop
    if place != size:
        raise GossamerError(f"{path}: {size - place} bytes follow the last tensor")


def round_to(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Rounds to nearest even in a stored type.

    Args:
        values: Any shape.
        dtype: "f32", "f16" or "bf16".

    Returns:
        float32, float16, or the bits of bfloat16 as uint16. Values beyond float16 become infinite.
    """
    if dtype == "f32":
        return values.astype("<f4", copy=False)
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    if dtype != "bf16":
        raise ValueError(f"dtype must be f32, f16 or bf16, got {dtype!r}")
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    stored = np.empty(flat.shape, "<u2")
    for start in range(0, len(flat), _CHUNK):  # what is computed with takes a multiple
        part = flat[start : start + _CHUNK]
        bits = part.view(np.uint32)
        rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype("<u2")  # wraps for NaN alone
        quiet = (bits >> 16).astype("<u2") | np.uint16(0x40)
        stored[start : start + _CHUNK] = np.where(np.isnan(part), quiet, rounded)
    return stored.reshape(values.shape)


class SafetensorsWriter:
    """Writes a file tensor by tensor, beside its place, and renames it when the `with` block ends well.

    After an error, Ctrl-C included, nothing is left. Every tensor begins at a multiple of `alignment` bytes.
    """

    def __init__(
        self, path: str | Path, names: Iterable[str], *, alignment: int = 64, metadata: dict[str, str] | None = None
    ) -> None:
        """Opens the file; space for the header is kept in front by the names that may come.

        Args:
            path: File to write; replaced if it exists.
            names: Every name that `add` may be given.
            alignment: Bytes.
            metadata: Free text entries of the header.

        Raises:
            GossamerError: the file cannot be opened.
        """
        self.path = Path(path)
        self._allowed = set(names)
        self._alignment = alignment
        self._header: dict[str, Any] = {"__metadata__": metadata or {}}
        space = len(json.dumps(self._header)) + sum(len(json.dumps(name)) + _ENTRY for name in self._allowed)
        # The offset of the first tensor. Where not all can come that may, the header stays one that can be read.
        self._data = min(-(-(8 + space) // 64) * 64, _MAX_HEADER)
        self._place = 0  # bytes of data so far
        self._fillers = 0
        with naming(self.path, "cannot write"):
            self._part = Part(self.path)
            self._file = os.fdopen(os.dup(self._part.handle), "wb", buffering=0)
            self._file.seek(self._data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._part.close()

    def add(self, name: str, values: NDArray[Any], dtype: str | None = None) -> None:
        """Appends a tensor.

        Args:
            name: One of the names given at the start, once.
            values: The tensor.
            dtype: The format's name of the type; needed only for bits that stand for a type numpy lacks ("BF16").

        Raises:
            GossamerError: the disk is full, or the file cannot be written for another reason.
        """
        if name not in self._allowed:
            raise ValueError(f"tensor {name} was not announced, or comes twice")
        self._allowed.remove(name)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        gap = -self._place % self._alignment
        if gap:
            self._append(f"{_PAD}{self._fillers}", "U8", np.zeros(gap, np.uint8))
            self._fillers += 1
        self._append(name, dtype or NAMES[little.dtype], little)

    def _append(self, name: str, dtype: str, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        end = self._place + data.size
        self._header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [self._place, end]}
        self._write(data.data)
        self._place = end

    def _write(self, data: memoryview) -> None:
        with naming(self.path, "cannot write"):
            while data:
                data = data[self._file.write(data[:_CHUNK]) :]

    def _finish(self) -> None:
        text = json.dumps(self._header, separators=(",", ":")).encode()
        space = self._data - 8
        if len(text) > space:
            raise ValueError(f"the header needs {len(text)} bytes, more than the {space} kept for it")
        with naming(self.path, "cannot write"):
            self._file.seek(0)
            self._write(memoryview(space.to_bytes(8, "little") + text.ljust(space)))
            os.fsync(self._file.fileno())  # or a crash of the machine could leave the name without the bytes
            self._file.close()
            self._part.settle()
