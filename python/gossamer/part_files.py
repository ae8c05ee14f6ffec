"""What is being written: beside its place, under a name that nobody can guess, and cleared away when its writer died.

A part is new (nothing that lies there, a link included, is followed or taken) and its writer holds a lock on it, which
the system frees however the process ends. Whoever next writes to the same place removes parts that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 255  # bytes of a file's name
_SPACE = len("..0123456789abcdef.part") + len(".ending")
_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part(\.\w+)?")
_PATIENCE = 2.0  # seconds to wait for others who make or clear parts in a folder, which takes them no time


class Part:
    """A file or folder that is to take a place.

    Attributes:
        place: Where it is to go.
        path: Where it lies until then.
        old: Where what lies at the place may be put aside meanwhile.
        handle: Open on the part: to write a file through.
    """

    def __init__(self, place: Path, *, folder: bool = False, ending: str = "") -> None:
        """Makes it, and removes what dead processes left for the same place.

        Args:
            place: Its folder must exist.
            folder: Whether it is a folder.
            ending: What its name must end in, for writers that look at that.

        Raises:
            OSError: it cannot be written there.
        """
        self.place = place
        self._folder = folder
        with _turn(place.parent):
            _clear(place)
            self.path, self.old = (new_name(place, end + ending) for end in ("part", "old"))
            kind = os.O_CREAT | os.O_EXCL | os.O_RDWR
            if folder:
                self.path.mkdir()
                kind = os.O_DIRECTORY | os.O_RDONLY
            self.handle = os.open(self.path, kind | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            _lock(self.handle)

    def settle(self) -> None:
        """Has it take its place; what was there comes back if that fails."""
        with _turn(self.place.parent):
            try:
                if self._folder and self.place.exists():
                    self.place.replace(self.old)
                self.path.replace(self.place)
            except BaseException:
                if self.old.exists() and not self.place.exists():
                    self.old.replace(self.place)
                raise
        flush(self.place.parent)

    def close(self) -> None:
        """Removes what has not taken its place, and what was there before if something else has."""
        _remove(self.path)
        if self.place.exists():
            _remove(self.old)
        os.close(self.handle)


@contextmanager
def new_file(place: Path, *, ending: str = "") -> Iterator[Part]:
    """Gives a part that reaches the disk and takes its place when the block ends well; otherwise nothing is left.

    Raises:
        OSError: it cannot be written there.
    """
    part = Part(place, ending=ending)
    try:
        yield part
        os.fsync(part.handle)
        part.settle()
    finally:
        part.close()


def flush(path: Path) -> None:
    """Has a file or the names in a folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def new_name(place: Path, end: str) -> Path:
    """A path beside `place` that nobody can guess; `end` is "part" for what may be cleared away."""
    return place.with_name(f".{_short(place.name)}.{secrets.token_hex(8)}.{end}")


def _short(name: str) -> str:
    """A name, or where it leaves too little room for the rest of a part's, its beginning and a digest."""
    text = os.fsencode(name)
    if len(text) + _SPACE <= _LONGEST:
        return name
    return f"{text[: _LONGEST - _SPACE - 17].decode('utf-8', 'ignore')}~{hashlib.sha256(text).hexdigest()[:16]}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _lock(handle: int) -> bool:
    """Takes the lock of a part; False where another has it, or the file system knows no such locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Keeps others from clearing a folder between two steps that belong together, where the system can."""
    if _PART.fullmatch(folder.name):  # its writer holds it already, and nobody else writes there
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, handle)
            end = time.monotonic() + _PATIENCE
            while not _lock(handle) and time.monotonic() < end:
                time.sleep(0.01)
        yield


def _clear(place: Path) -> None:
    """Removes parts of this user that nobody holds; a folder put aside whose place is empty goes back there."""
    name = re.compile(re.escape(f".{_short(place.name)}.") + r"[0-9a-f]{16}\.(part|old)(\.\w+)?")
    try:
        found = [(path, match[1]) for path in place.parent.iterdir() if (match := name.fullmatch(path.name))]
    except OSError:
        return  # a folder that may be written to and not listed
    for path, kind in found:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # a link, gone meanwhile, or another user's
        with contextlib.suppress(OSError):
            if os.fstat(handle).st_uid == os.geteuid() and _lock(handle):
                if kind == "old" and not os.path.lexists(place):
                    path.replace(place)
                else:
                    _remove(path)
        os.close(handle)
