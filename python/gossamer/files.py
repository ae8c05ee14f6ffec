"""What a file turns out to be before it is read."""

from __future__ import annotations

from pathlib import Path

from .errors import GossamerError

_POINTER = b"version https://git-lfs"


def refuse_pointer(path: Path) -> None:
    """Raises `GossamerError` where a file is what git-lfs leaves in the place of a large file that was not fetched."""
    try:
        with path.open("rb") as file:
            found = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return  # whoever reads it says so
    if found:
        raise GossamerError(f"{path}: a git-lfs pointer, not the file itself; `git lfs pull` fetches it")
