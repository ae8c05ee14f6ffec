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
        GossamerError: something else is there, or it is `.` or `..`.
    """
    if folder.name in ("", ".."):
        raise GossamerError(f"{folder}: name a folder below or beside it, since the result takes its place whole")
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and (not any(folder.iterdir()) or replaceable(folder)):
        return
    raise GossamerError(f"{folder}: exists already{f' and is no {what}' if what else ''}; it is left as it is")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a fresh folder beside `folder`, which takes its place, whatever is there, when the block ends well.

    After an error, Ctrl-C included, nothing is left of it and `folder` is as it was.

    Args:
        folder: The destination, see `check_destination`; missing parents are made.

    Raises:
        GossamerError: a file cannot be written, for example because the disk is full.
    """
    part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        if folder.exists():
            folder.replace(old)
        try:
            part.replace(folder)
        except BaseException:
            if old.exists():
                old.replace(folder)
            raise
    except OSError as error:
        raise GossamerError(f"{folder}: cannot write: {error.strerror or error}") from None
    except GossamerError as error:  # about a file of the part: named by its place to be
        raise GossamerError(str(error).replace(str(part), str(folder))) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
