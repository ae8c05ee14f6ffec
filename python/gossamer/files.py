"""Files of strangers: what one turns out to be before it is read, and JSON that says one thing only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import GossamerError, naming

_POINTER = b"version https://git-lfs"
_MOST_BYTES = 16 << 20  # of a JSON file: the longest that are known, lists of a million tensors' names, stay below
_MOST_OBJECTS = 1 << 20  # in one, and lists: each takes a hundred bytes and more of memory
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def refuse_pointer(path: Path) -> None:
    """Raises `GossamerError` where a file is what git-lfs leaves in the place of a large file that was not fetched."""
    try:
        with path.open("rb") as file:
            found = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return  # whoever reads it says so
    if found:
        raise GossamerError(f"{path}: a git-lfs pointer, not the file itself; `git lfs pull` fetches it")


def read_bytes(path: Path, most: int) -> bytes:
    """Returns what a file holds.

    Raises:
        GossamerError: it has more than `most` bytes.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise GossamerError(f"{path}: has more than {most} bytes, which no such file needs")
    return data


def parse_json(text: str) -> Any:
    """Parses JSON that readers cannot differ about.

    Raises:
        ValueError: it is none, an object has a key twice with different values, a text holds half a surrogate pair,
            which nothing could write again, it is nested too deeply, or it has more in it than is believed.
    """
    if text.count("[") + text.count("{") > _MOST_OBJECTS:
        raise ValueError(f"more than {_MOST_OBJECTS} objects and lists")
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        raise ValueError(f"a text holds half a surrogate pair, {half!r}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; JSON itself would let the last of two equal keys win."""
    values = dict(pairs)
    if len(values) != len(pairs):
        first: dict[str, Any] = {}
        for key, value in pairs:
            if key not in first:
                first[key] = value
            elif json.dumps(first[key], sort_keys=True) != json.dumps(value, sort_keys=True):  # to Python 1 is true
                raise ValueError(f"key {key!r:.80} stands twice, with different values")
    return values


def nested(value: Any, most: int) -> bool:
    """Returns whether a value of JSON has more than `most` objects and lists within one another."""
    level = [value]
    for _ in range(most + 1):
        level = [each for each in level if isinstance(each, (dict, list))]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object, as `parse_json` does.

    Raises:
        GossamerError: the file cannot be read, or holds something else.
    """
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise GossamerError(f"{path}: must hold a JSON object")
    return value


def read_json_value(path: Path) -> Any:
    """Reads a file that holds JSON of any kind.

    Raises:
        GossamerError: the file cannot be read, or is none.
    """
    with naming(path):
        data = read_bytes(path, _MOST_BYTES)
    try:
        return parse_json(data.decode())
    except ValueError as error:
        refuse_pointer(path)
        raise GossamerError(f"{path}: not valid JSON: {error}") from None


def read_json_lines(path: str | Path, fields: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Gives the objects of a file that has one a line, each with file and line where it stands; blank lines are none.

    Args:
        path: The file.
        fields: What an object has, in words, for messages.

    Raises:
        GossamerError: the file cannot be read, has no objects, or a line is none; the line names file and line.
    """
    path = Path(path)
    refuse_pointer(path)
    where = ""
    with naming(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = parse_json(line.decode())
            except ValueError as error:
                raise GossamerError(f"{where}: not valid JSON: {error}") from None
            if not isinstance(value, dict):
                raise GossamerError(f"{where}: must be a JSON object with {fields}, got {value!r:.80}")
            yield where, value
    if not where:
        raise GossamerError(f"{path}: holds no samples")
