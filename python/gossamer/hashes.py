"""Checksums: of files, told whole or believed while size and time are those of the last check, and of JSON values."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .folders import write_file

_RECORD = "verified.json"
_SAMPLES, _SAMPLE = 32, 4096


def sha256(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sampled_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's size and of some pages of it, evenly spread: cheap, however large it is.

    It tells a file from another one, not from the same with a wrong bit.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(f"{size} ".encode())
        for number in range(_SAMPLES):
            file.seek(max(size - _SAMPLE, 0) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """Returns the SHA-256 of a value that JSON can hold, the same however it was written: keys in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_intact(path: Path, expected: str) -> bool:
    """Whether a file has a checksum. It is read whole the first time with each version of gossamer.

    What was found is kept beside it, with its size and time; while those stay, it is not read again.

    Args:
        path: The file.
        expected: SHA-256 in hexadecimal digits.
    """
    from . import __version__

    record = path.with_name(_RECORD)
    try:
        stat = path.stat()
    except OSError:
        return False
    mine = [stat.st_size, stat.st_mtime_ns, expected, __version__]
    found: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(record.read_text(encoding="utf-8"))
        found = kept if isinstance(kept, dict) else {}
    if found.get(path.name) == mine:
        return True
    try:
        if sha256(path) != expected:
            return False
    except OSError:
        return False
    with contextlib.suppress(OSError):  # where nothing can be kept, it is read the next time, too
        write_file(record, json.dumps(found | {path.name: mine}) + "\n")
    return True
