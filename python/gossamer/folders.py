"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import GossamerError, naming, one_line
from .model_files import holds_model, stranger
from .part_files import Part, flush, new_file, new_name


def home() -> Path:
    """Returns the folder that models are kept in: $GOSSAMER_HOME, by default ~/.cache/gossamer.

    Raises:
        GossamerError: nobody knows where ~ is.
    """
    try:
        return Path(os.environ.get("GOSSAMER_HOME") or "~/.cache/gossamer").expanduser()
    except RuntimeError as error:
        raise GossamerError(f"GOSSAMER_HOME: {error}") from None


def shown_name(path: str | Path) -> str:
    """Returns what a model on disk is called: its folder or file, and org/name where that lies in the hub's cache.

    It can be printed and written whatever the name is.
    """
    path = Path(path)
    parts = path.parts[-3:]
    if len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "snapshots":
        return one_line(parts[0].removeprefix("models--").replace("--", "/", 1))
    return one_line(path.name)


def called(info: Mapping[str, Any]) -> str:
    """Returns what lines call a model, by its facts: where it lies, or else its name."""
    return str(info.get("path") or info.get("name", "the model"))


def check_destination(
    folder: Path,
    *,
    force: bool = False,
    reads: Iterable[str | Path] = (),
    replaceable: Callable[[Path], bool] = holds_model,
) -> None:
    """Makes sure that a folder may be written: it has a name, and does not exist, is empty, or may be replaced.

    Args:
        folder: The destination.
        force: Whether what lies there may be replaced, if it is `replaceable`.
        reads: What the work reads; a folder that holds one of these is not replaced.
        replaceable: Whether a folder is one that may go at all.

    Raises:
        GossamerError: something else is there, it is `.`, `..` or a mount point, or its parent cannot be written to.
    """
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long a name, or one that no file can have
        raise GossamerError(f"{folder}: cannot write: {getattr(error, 'strerror', None) or error}") from None
    if folder.name in ("", "..") or folder.is_mount():
        raise GossamerError(f"{folder}: name a folder below or beside it, since the result takes its place whole")
    place = Path(os.path.realpath(folder))
    parent = place.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise GossamerError(f"{folder}: cannot write: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise GossamerError(f"{folder}: cannot write: {parent} does not let you")
    there = folder if os.path.lexists(folder) else place  # which may be there, as with a/../b where a is not
    if not os.path.lexists(there):
        return
    if there.is_dir() and not any(there.iterdir()):
        return
    if not there.is_dir() or not replaceable(there):
        what = "holds no model and no samples" if there.is_dir() else "is no folder"
        if there.is_dir() and (name := stranger(there)):
            what = f"holds more than a model or samples ({name})"
        raise GossamerError(one_line(f"{folder}: exists already and {what}; it is left as it is"))
    if not force:
        raise GossamerError(f"{folder}: exists already; --force replaces it")
    for read in reads:
        path = Path(os.path.realpath(read))
        if place == path or place in path.parents:
            raise GossamerError(f"{folder}: cannot be replaced, since {read} is read; name another folder")


def check_new_file(path: str | Path, *, force: bool) -> None:
    """Refuses a file that is there, unless it may be replaced.

    Raises:
        GossamerError: it is there.
    """
    if not force and Path(path).exists():
        raise GossamerError(f"{path}: exists already; --force replaces it")


@contextmanager
def new_folder(
    folder: Path,
    *,
    force: bool = False,
    reads: Iterable[str | Path] = (),
    replaceable: Callable[[Path], bool] = holds_model,
) -> Iterator[Path]:
    """Gives a fresh folder beside `folder`, which reaches the disk and takes its place when the block ends well.

    After an error, Ctrl-C included, nothing is left of it and `folder` is as it was. What has come to lie there while
    the block ran stays, too, unless it may be replaced.

    Args:
        folder: The destination, see `check_destination`; missing parents are made, a link is followed.
        force: As there.
        reads: As there.
        replaceable: As there.

    Raises:
        GossamerError: a file cannot be written, for example because the disk is full, or see `check_destination`.
    """
    reads = list(reads)
    check_destination(folder, force=force, reads=reads, replaceable=replaceable)
    place = Path(os.path.realpath(folder))
    part = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Part(place, folder=True)
        check_destination(folder, force=force, reads=reads, replaceable=replaceable)  # a killed process's may be back
        yield part.path
        for path in part.path.rglob("*"):
            if path.is_file():
                flush(path)
        check_destination(folder, force=force, reads=reads, replaceable=replaceable)
        part.settle()
    except OSError as error:
        raise GossamerError(f"{folder}: cannot write: {error.strerror or error}") from None
    except GossamerError as error:  # about a file of the part: named by its place to be
        raise GossamerError(str(error).replace(str(part.path), str(folder)) if part else str(error)) from None
    finally:
        if part is not None:
            part.close()


def remove_folder(folder: Path) -> None:
    """Removes a folder: it is gone from its place at once, whole, and then deleted.

    Raises:
        GossamerError: it cannot be moved.
    """
    old = new_name(folder, "part")
    with naming(folder, "cannot be removed"):
        folder.replace(old)
    shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file beside `path`, has it reach the disk, and puts it there.

    After an error nothing is left and `path` is as it was.

    Args:
        path: The file; missing parents are made.
        content: What it is to hold; text as UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as part, os.fdopen(os.dup(part.handle), "wb") as file:
        file.write(data)
