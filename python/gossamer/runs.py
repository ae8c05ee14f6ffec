"""Folders beside a destination in which a long run keeps what it goes on from when it was stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import GossamerError, naming, one_line
from .files import read_json
from .folders import write_file

_SETTINGS, _LOCK = "settings.json", "lock"


def stamps(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Returns size and time of the last change of files, and of those in folders: what tells them from others."""
    files = (file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]))
    found = {one_line(str(file.absolute())): file.stat() for file in files if file.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


@contextmanager
def run_folder(dst: Path, kind: str, busy: str, state: str, settings: dict[str, Any]) -> Iterator[Path]:
    """Gives the folder `dst`.kind, and checks that it belongs to the same run.

    The folder stays when the block ends with an error and a state has been saved; otherwise it goes.

    Args:
        dst: Where the result will be.
        kind: What the run does, in a word.
        busy: What is said where another process is at it.
        state: The file whose being there says that a state was saved.
        settings: What must not change between the parts of a run, ready for JSON.

    Raises:
        GossamerError: it was begun with other settings or holds something else, another process is at it, or it cannot
            be written.
    """
    folder = dst.with_name(f"{dst.name}.{kind}")
    if folder.is_dir() and not (folder / _SETTINGS).exists() and any(_foreign(path) for path in folder.iterdir()):
        raise GossamerError(f"{folder}: exists already and holds no {kind} run; it is left as it is")
    with naming(folder, "cannot write"):
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.fdopen(os.open(folder / _LOCK, flags, 0o666), "w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GossamerError(f"{folder}: {busy}") from None
        if (folder / state).exists():
            _check(folder, settings)
        else:
            with naming(folder, "cannot write"):
                write_file(folder / _SETTINGS, json.dumps(settings, indent=2) + "\n")
        done = False
        try:
            yield folder
            done = True
        finally:
            if done or not (folder / state).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _foreign(path: Path) -> bool:
    """Whether a run that has no settings yet did not make this."""
    return path.name != _LOCK and not path.name.startswith(f".{_SETTINGS}")


def _check(folder: Path, settings: dict[str, Any]) -> None:
    begun = read_json(folder / _SETTINGS)
    now = json.loads(json.dumps(settings))
    for key in {**begun, **now}:
        if begun.get(key) != now.get(key):
            raise GossamerError(
                f"{folder}: the run there was begun with {key} {begun.get(key)!r:.80}, this one has "
                f"{now.get(key)!r:.80}; go on with the same options, or delete the folder"
            )
