"""What is kept on disk: built-in models, what they were made from, and checkpoints that were fetched from the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import GossamerError, did_you_mean
from ..folders import home, remove_folder
from . import builtin, hub

BUILT_IN, DOWNLOAD, HUB = "built in", "download", "hub"


@dataclass(frozen=True)
class Entry:
    """Something that is kept, or could be.

    Attributes:
        name: What it is called, and removed by.
        kind: `BUILT_IN`, `DOWNLOAD` (what built-in models are made from) or `HUB`.
        folders: Where it lies; none where it is not there yet, several where older builds are left.
        bytes: What it takes on disk.
    """

    name: str
    kind: str
    folders: tuple[Path, ...]
    bytes: int


def entries() -> list[Entry]:
    """Returns all built-in models, and all else that is there."""
    root = home()
    builds: dict[str, list[Path]] = {name: [] for name in builtin.names()}
    for folder in _folders(root / "models"):
        if match := re.fullmatch(r"(.+)-r\d+", folder.name):
            builds.setdefault(match[1], []).append(folder)
    found = [_entry(name, BUILT_IN, folders) for name, folders in builds.items()]
    found += [_entry(folder.name, DOWNLOAD, [folder]) for folder in _folders(root / "downloads")]
    return found + [_entry(repo, HUB, [folder]) for repo, folder in hub.fetched(root).items()]


def remove(name: str) -> Entry:
    """Removes from disk what `entries` has under a name.

    Returns:
        What it was.

    Raises:
        GossamerError: there is no such thing, or it cannot be removed.
    """
    known = {entry.name: entry for entry in entries() if entry.folders}
    if name not in known:
        if hub.parse(name):
            raise GossamerError(f"{name}: is not among what gossamer fetched from the hub{did_you_mean(name, known)}")
        raise GossamerError(f"{name}: nothing of that name is kept{did_you_mean(name, known)}")
    entry = known[name]
    if entry.kind == HUB:
        hub.remove(home(), name)
        return entry
    with builtin.locked():
        for folder in entry.folders:
            remove_folder(folder)
    return entry


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and links, which lead elsewhere."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))


def _entry(name: str, kind: str, folders: list[Path]) -> Entry:
    files = {(stat.st_dev, stat.st_ino): stat.st_size for folder in folders for stat in _stats(folder)}
    return Entry(name, kind, tuple(folders), sum(files.values()))


def _stats(folder: Path) -> list[os.stat_result]:
    """Of the files in a folder; what links lead to is counted where it lies."""
    return [path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
