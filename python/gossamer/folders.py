"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GossamerError


def check_destination(folder: Path, replaceable: Callable[[Path], bool] = lambda _: False, what: str = "") -> None:
    """Makes sure that a folder may be written: it has a name, and does not exist, is empty, or may be replaced.

    Args:
        folder: The destination.
        replaceable: Whether what lies there may go.
        what: What may be replaced, for the error.

    Raises:
        GossamerError: something else is there, it is `.`, `..` or a mount point, or its parent cannot be written to.
    """
    if folder.name in ("", "..") or folder.is_mount():
        raise GossamerError(f"{folder}: name a folder below or beside it, since the result takes its place whole")
    parent = Path(os.path.realpath(folder)).parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise GossamerError(f"{folder}: cannot write: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise GossamerError(f"{folder}: cannot write: {parent} does not let you")
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and (not any(folder.iterdir()) or replaceable(folder)):
        return
    raise GossamerError(f"{folder}: exists already{f' and is no {what}' if what else ''}; it is left as it is")


@contextmanager
def new_folder(folder: Path, replaceable: Callable[[Path], bool] = lambda _: False, what: str = "") -> Iterator[Path]:
    """Gives a fresh folder beside `folder`, which reaches the disk and takes its place when the block ends well.

    After an error, Ctrl-C included, nothing is left of it and `folder` is as it was. What has come to lie there while
    the block ran stays, too, unless it may be replaced.

    Args:
        folder: The destination, see `check_destination`; missing parents are made, a link is followed.
        replaceable: As there.
        what: As there.

    Raises:
        GossamerError: a file cannot be written, for example because the disk is full, or see `check_destination`.
    """
    check_destination(folder, replaceable, what)
    place = Path(os.path.realpath(folder))
    part, old = (place.with_name(f".{place.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                _flush(path)
        check_destination(folder, replaceable, what)
        try:
            if place.exists():
                place.replace(old)
            part.replace(place)
        except BaseException:
            if old.exists() and not place.exists():
                old.replace(place)
            raise
        _flush(place.parent)
    except OSError as error:
        raise GossamerError(f"{folder}: cannot write: {error.strerror or error}") from None
    except GossamerError as error:  # about a file of the part: named by its place to be
        raise GossamerError(str(error).replace(str(part), str(folder))) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Has a file or the names in a folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, text: str) -> None:
    """Writes a UTF-8 file beside `path`, has it reach the disk, and puts it there.

    After an error nothing is left and `path` is as it was.

    Args:
        path: The file; missing parents are made.
        text: What it is to hold.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        _flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
