"""Files that torch.save wrote, read as data: tensors, containers, numbers and texts, and nothing that could run.

Such a file is a zip archive of a pickle and of the storages that its tensors lie in. What a pickle may call is listed
here, and stands for plain data; anything else it names is refused by its name.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..files import refuse_pointer
from ..safetensors_io import from_bfloat16

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # bits
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_MOST_PICKLE = 1 << 30
_MOST_DIMENSIONS = 32
_ZIP_HEADER = 30


class _Refused(Exception):
    """The pickle asks for something that is not done; the text says what."""


class _Dict(dict[Any, Any]):
    """A dictionary whose attributes, such as the versions that torch notes, are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """An integer type of numpy, as its scalars are pickled with it."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        if not isinstance(code, str) or code not in ("i8", "i4"):
            raise _Refused(f"asks for numpy.dtype({code!r:.40})")
        self.size = int(code[1])

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] != "<":
            raise _Refused("has a numpy.dtype that is not little-endian")


def _scalar(kind: Any, data: Any) -> int:
    if not isinstance(kind, _DType) or not isinstance(data, bytes) or len(data) != kind.size:
        raise _Refused("has a scalar of numpy that is no integer")
    return int.from_bytes(data, "little", signed=True)


def _encoded(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("asks for _codecs.encode of something else than bytes")
    return text.encode("latin1")


def _dict(*arguments: Any) -> _Dict:
    if arguments:
        raise _Refused("calls collections.OrderedDict with arguments")
    return _Dict()


class Bits(np.ndarray[Any, np.dtype[Any]]):
    """Bits of bfloat16 values, which numpy lacks."""


def floats(values: NDArray[Any]) -> NDArray[Any]:
    """Returns bfloat16 values out of their bits, and others as they are."""
    return from_bfloat16(np.asarray(values)) if isinstance(values, Bits) else values


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """What _rebuild_tensor_v2 makes: a view of a storage."""
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise _Refused("has a tensor whose size is none")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise _Refused("has a tensor whose size is none")
    last = offset + sum((one - 1) * step for one, step in zip(size, stride, strict=True))
    if offset > storage.size or (0 not in size and last >= storage.size):
        raise _Refused("has a tensor that reaches beyond its storage")
    if 0 not in size and math.prod(size) > storage.size:
        raise _Refused("has a tensor that is larger than its storage")
    each = storage.itemsize
    view: NDArray[Any] = np.lib.stride_tricks.as_strided(
        storage[offset:], size, [step * each for step in stride], subok=True, writeable=False
    )
    return view


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _dict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle.Unpickler):
    """An unpickler that finds what is listed, and storages in the archive."""

    def __init__(self, pickled: bytes, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        super().__init__(io.BytesIO(pickled))
        self._archive, self._root, self._path = archive, root, path
        self._left = path.stat().st_size  # which storages cannot have more than
        self._storages: dict[str, NDArray[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise _Refused(f"asks for {module}.{name}, which is no tensor and no container") from None

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in _STORAGES.values():
            raise _Refused("has a storage that is none")
        _, dtype, key, _, count = pid
        if not isinstance(key, str) or not key.isdecimal() or type(count) is not int:
            raise _Refused("has a storage without a number")
        if key not in self._storages:
            self._storages[key] = self._storage(f"{self._root}/data/{key}", np.dtype(dtype), count)
        return self._storages[key]

    def _storage(self, name: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Maps a file of the archive, which torch stores as it is."""
        info = _member(self._archive, name)
        self._left -= info.file_size
        if self._left < 0:
            raise _Refused("has storages that overlap")
        if info.file_size != count * dtype.itemsize:
            raise _Refused(f"has a storage {name.rpartition('/')[2]} of {info.file_size} bytes for {count} values")
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_ZIP_HEADER)
        if len(header) != _ZIP_HEADER or header[:4] != b"PK\x03\x04":
            raise _Refused(f"has no header for {name}")
        start = info.header_offset + _ZIP_HEADER + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > self._path.stat().st_size:
            raise _Refused(f"ends within {name}")
        values: NDArray[Any] = np.zeros(0, dtype)
        if count:
            values = np.memmap(self._path, dtype, "r", start, (count,)).view(np.ndarray)
        return values.view(Bits) if dtype == np.dtype("<u2") else values


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A file of the archive, which torch stores as it is."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise _Refused(f"lacks {name}") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise _Refused(f"has {name} compressed or encrypted, which torch never does")
    return info


def read_archive(path: Path) -> Any:
    """Reads what torch.save was given.

    Args:
        path: The file.

    Returns:
        Tensors as views of the file, those of bfloat16 as `Bits`; containers, numbers and texts as they were.

    Raises:
        GossamerError: it is no such file, is not valid, or names something that is not known to be plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise _Refused("holds no pickle of torch")
            order, pickled = f"{roots[0]}/byteorder", _member(archive, f"{roots[0]}/data.pkl")
            if order in archive.namelist() and archive.read(_member(archive, order)) != b"little":
                raise _Refused("is not little-endian")
            if pickled.file_size > _MOST_PICKLE:
                raise _Refused("has a pickle of more than a gigabyte")
            return _Reader(archive.read(pickled), archive, roots[0], path).load()
    except _Refused as error:
        raise GossamerError(f"{path}: {error}") from None
    except zipfile.BadZipFile:
        refuse_pointer(path)
        raise GossamerError(f"{path}: is no file of torch.save, or of one before version 1.6") from None
    except OSError as error:
        raise GossamerError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a broken pickle may raise anything, and runs nothing
        raise GossamerError(f"{path}: a broken pickle: {error}") from None
