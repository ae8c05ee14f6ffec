"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GossamerError

_SIGNS = ("gossamer.json", "config.json", "samples.json")
_PARTS = {"low_rank"}


def holds_model(folder: Path) -> bool:
    """Whether a folder is one of a model or of samples, as gossamer writes them: without other folders in it."""
    inside = list(folder.iterdir())
    return any(path.name in _SIGNS for path in inside) and {path.name for path in inside if path.is_dir()} <= _PARTS


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
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not folder.is_dir() or not replaceable(folder):
        raise GossamerError(f"{folder}: exists already and holds more than a model or samples; it is left as it is")
    if not force:
        raise GossamerError(f"{folder}: exists already; --force replaces it")
    for read in reads:
        path = Path(os.path.realpath(read))
        if place == path or place in path.parents:
            raise GossamerError(f"{folder}: cannot be replaced, since {read} is read; name another folder")


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
    part, old = (place.with_name(f".{place.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                _flush(path)
        check_destination(folder, force=force, reads=reads, replaceable=replaceable)
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


def remove_folder(folder: Path) -> None:
    """Removes a folder: it is gone from its place at once, whole, and then deleted.

    Raises:
        GossamerError: it cannot be moved.
    """
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.replace(old)
    except OSError as error:
        raise GossamerError(f"{folder}: cannot be removed: {error.strerror or error}") from None
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
