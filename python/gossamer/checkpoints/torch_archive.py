"""Files that torch.save wrote, read as data: tensors, containers, numbers and texts, and nothing that could run.

Such a file is a zip archive of a pickle and of the storages that its tensors lie in. What a pickle may call is listed
here, and stands for plain data; anything else it names is refused by its name.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..files import refuse_pointer

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


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """What _rebuild_tensor_v2 makes: a view of a storage."""
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise _Refused("has a tensor whose size is none")
    count = int(np.prod(size, dtype=object)) if size else 1
    contiguous = tuple(int(np.prod(size[i + 1 :], dtype=object)) for i in range(len(size)))
    if count and any(s > 1 and own != step for s, own, step in zip(size, stride, contiguous, strict=True)):
        raise _Refused("has a tensor whose rows are not one behind the other")
    if offset + count > storage.size:
        raise _Refused("has a tensor that reaches beyond its storage")
    view: NDArray[Any] = storage[offset : offset + count].reshape(size)
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

    def __init__(self, pickled: bytes, archive: zipfile.ZipFile, root: str, size: int) -> None:
        super().__init__(io.BytesIO(pickled))
        self._archive, self._root = archive, root
        self._left = size  # bytes of the file, which storages cannot have more than
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
            data = _member(self._archive, f"{self._root}/data/{key}")
            self._left -= len(data)
            if self._left < 0:
                raise _Refused("has storages that overlap")
            if len(data) != count * np.dtype(dtype).itemsize:
                raise _Refused(f"has a storage {key} of {len(data)} bytes for {count} values")
            values = np.frombuffer(data, dtype)
            self._storages[key] = (values.astype(np.uint32) << 16).view(np.float32) if dtype == "<u2" else values
        return self._storages[key]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive, which torch stores as it is."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise _Refused(f"lacks {name}") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise _Refused(f"has {name} compressed or encrypted, which torch never does")
    return archive.read(info)


def read_archive(path: Path) -> Any:
    """Reads what torch.save was given.

    Args:
        path: The file.

    Returns:
        Tensors as arrays of numpy, bfloat16 as float32; containers, numbers and texts as they were.

    Raises:
        GossamerError: it is no such file, is not valid, or names something that is not known to be plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise _Refused("holds no pickle of torch")
            if f"{roots[0]}/byteorder" in archive.namelist() and _member(archive, f"{roots[0]}/byteorder") != b"little":
                raise _Refused("is not little-endian")
            if archive.getinfo(f"{roots[0]}/data.pkl").file_size > _MOST_PICKLE:
                raise _Refused("has a pickle of more than a gigabyte")
            pickled = _member(archive, f"{roots[0]}/data.pkl")
            return _Reader(pickled, archive, roots[0], path.stat().st_size).load()
    except _Refused as error:
        raise GossamerError(f"{path}: {error}") from None
    except zipfile.BadZipFile:
        refuse_pointer(path)
        raise GossamerError(f"{path}: is no file of torch.save, or of one before version 1.6") from None
    except OSError as error:
        raise GossamerError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a broken pickle may raise anything, and runs nothing
        raise GossamerError(f"{path}: a broken pickle: {error}") from None
