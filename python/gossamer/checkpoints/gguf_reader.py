"""Reading the keys and tensors of a GGUF file through the `gguf` package, with every length checked against the file.

The package believes what a file says of itself: it reads on beyond the end with empty arrays, and makes several objects
of every element of a list. The checks stand in methods of its reader that it calls private, so that its version has an
upper bound, and a reader that did not call them is not believed.
"""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import GossamerError, naming
from ..files import refuse_pointer

_MOST_ENTRIES = 1 << 22  # of all lists; vocabularies and their merges have a third of it
_MOST_TEXT = 64 << 20  # bytes of all texts; the same have a tenth of it
_MOST_TENSORS = 1 << 14
_MOST_KEYS = 1 << 16
_MOST_DIMENSIONS = 4  # of the format
_TENSOR_BYTES = 24  # that an entry of the list of tensors takes at least
_KEY_BYTES = 13
_CHECKS = {"_get", "_get_field_parts", "_build_fields", "_build_tensor_info", "_build_tensors"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the keys of a file, and its tensors as the package describes them, by name.

    Raises:
        GossamerError: it cannot be read, or is not valid.
    """
    _check_start(path)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        reader = _reader_class()(path)
    except OSError as error:
        raise GossamerError(f"{path}: {error.strerror or error}") from None
    except EOFError as error:
        raise GossamerError(f"{path}: {error}") from None
    except Exception as error:  # whatever garbage leads the package into
        raise GossamerError(f"{path}: not a valid GGUF file: {error!s:.200}") from None
    if missing := _CHECKS - reader.checked:
        raise GossamerError(
            f"{path}: gguf {metadata.version('gguf')} reads files without {', '.join(sorted(missing))}, where they "
            "are checked; install a version that gossamer asks for"
        )
    keys = {name: _value(field) for name, field in reader.fields.items()}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def _check_start(path: Path) -> None:
    """Refuses what is no such file for a reason that can be told."""
    refuse_pointer(path)
    with naming(path), path.open("rb") as file:
        magic, version = file.read(4), int.from_bytes(file.read(4), "little")
    if magic == b"GGUF" and version and not version & 0xFFFF:
        raise GossamerError(f"{path}: is for big-endian machines; GGUF files must be little-endian here")


def _reader_class() -> Any:
    import gguf

    list_type, text_type = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING

    class Reader(gguf.GGUFReader):
        """The package's reader, with the file's end respected and lists as one part each."""

        def __init__(self, path: Path) -> None:
            self.checked: set[str] = set()
            self._entries, self._text = _MOST_ENTRIES, _MOST_TEXT
            super().__init__(path)

        def _room(self, offset: int, size: int) -> None:
            if offset + size > len(self.data):
                raise EOFError(f"truncated: it has {len(self.data)} bytes, too few for its list of keys and tensors")

        def _get(self, offset: int, dtype: DTypeLike, count: int = 1, *args: Any, **options: Any) -> Any:
            self.checked.add("_get")
            self._room(int(offset), np.dtype(dtype).itemsize * int(count))
            return super()._get(offset, dtype, count, *args, **options)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            self.checked.add("_get_field_parts")
            if raw_type == text_type:
                self._spell(int(self._get(orig_offs, np.uint64)[0]))
            if raw_type != list_type:
                return super()._get_field_parts(orig_offs, raw_type)
            kind = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
            count, start = int(self._get(orig_offs + 4, np.uint64)[0]), int(orig_offs) + 12
            if kind == list_type:
                raise ValueError("a list of lists")
            self._room(start, count)  # an entry takes a byte at least
            self._entries -= count
            if self._entries < 0:
                raise ValueError(f"a list of {count} entries, more than {_MOST_ENTRIES} in all")
            if kind == text_type:
                texts, end = self._texts(start, count)
                return end - orig_offs, [texts], [0], [list_type, kind]
            values = self._get(start, self.gguf_scalar_to_np[kind], count)
            return 12 + values.nbytes, [values], [0], [list_type, kind]

        def _spell(self, size: int) -> None:
            self._text -= size
            if self._text < 0:
                raise ValueError(f"a text of {size} bytes, more than {_MOST_TEXT} in all")

        def _texts(self, start: int, count: int) -> tuple[list[str], int]:
            """A list of texts, and where it ends."""
            self._room(start, 8 * count)
            data: Any = self.data
            data, texts = memoryview(data), []
            for _ in range(count):
                size = int.from_bytes(data[start : start + 8], "little")
                self._room(start, 8 + size)
                self._spell(size)
                texts.append(str(data[start + 8 : start + 8 + size], "utf-8", "replace"))
                start += 8 + size
            return texts, start

        def _build_fields(self, offs: int, count: int) -> int:
            self.checked.add("_build_fields")
            self._room(int(offs), _KEY_BYTES * int(count))
            if count > _MOST_KEYS:
                raise ValueError(f"{count} keys, more than {_MOST_KEYS}")
            return int(super()._build_fields(offs, count))

        def _build_tensor_info(self, offs: int, count: int) -> Any:
            self.checked.add("_build_tensor_info")
            self._room(int(offs), _TENSOR_BYTES * int(count))
            if count > _MOST_TENSORS:
                raise ValueError(f"{count} tensors, more than {_MOST_TENSORS}")
            return super()._build_tensor_info(offs, count)

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            self.checked.add("_build_tensors")
            for field in fields:
                name, dims, kind, offset = (field.parts[index] for index in (1, 3, 4, 5))
                text = bytes(name[:200]).decode("utf-8", "replace")
                if len(dims) > _MOST_DIMENSIONS:
                    raise ValueError(f"tensor {text} has {len(dims)} dimensions, more than {_MOST_DIMENSIONS}")
                block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind[0])]
                count = 1
                for dim in dims.tolist():
                    count *= dim
                if int(start_offs) + int(offset[0]) + count // block * size > len(self.data):
                    raise EOFError(f"truncated: tensor {text} ends beyond the file's {len(self.data)} bytes")
            super()._build_tensors(start_offs, fields)

    return Reader


def _value(field: Any) -> Any:
    """A key's value: text, number, or a list of them."""
    import gguf

    if not field.types:
        return None
    if field.types[0] == gguf.GGUFValueType.ARRAY:
        values = field.parts[field.data[0]]
        return values if isinstance(values, list) else values.tolist()
    value = field.parts[field.data[0]]
    if field.types[0] == gguf.GGUFValueType.STRING:
        return bytes(value).decode("utf-8", "replace")
    return value.tolist()[0]
