"""Checkpoints of the hub, by ids such as org/name and org/name@revision, with what goes wrong told in our own words."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

from ..errors import GossamerError
from ..folders import remove_folder, write_file
from ..progress import Progress

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w][\w./+-]*))?", re.ASCII)
_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICENSE*")
_PICKLES = ("pytorch_model*.bin",)  # where there is nothing else
# Of subfolders, low_rank alone.
_NOT_THESE = ("[!l]*/*", "l[!o]*/*", "lo[!w]*/*", "low[!_]*/*", "consolidated*")


def parse(name: str) -> tuple[str, str | None] | None:
    """Splits org/name or org/name@revision into id and revision; None where a name is no such id."""
    match = _ID.fullmatch(name)
    return (match[1], match[2]) if match and not match[1].endswith(".gguf") else None


def fetch(repo: str, revision: str | None, home: Path, progress: Progress | None = None) -> Path:
    """Returns the folder of a checkpoint in the hub's cache, fetched if it is not there yet.

    Args:
        repo: org/name.
        revision: A branch, tag or commit; None for the main branch.
        home: Where it is noted that gossamer fetched it, and not somebody else before.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: there is no such checkpoint, the hub does not give it, or it cannot be reached.
    """
    import huggingface_hub

    name = repo if revision is None else f"{repo}@{revision}"
    if progress:
        progress(0, 1, f"fetching {name}")
    if not _folder(repo).exists():
        with contextlib.suppress(OSError):  # without the note it is not listed, and works
            write_file(_note(home, repo), json.dumps({"repo": repo, "folder": str(_folder(repo))}) + "\n")
    try:
        for patterns in (_FILES, _FILES + _PICKLES):
            found = huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_NOT_THESE)
            )
            if any(Path(found).glob("*.safetensors")):
                break
    except Exception as error:  # the package has many, and those of the network below it
        raise GossamerError(f"{name}: {_explain(error, revision)}") from None
    finally:
        if not _folder(repo).exists():
            _note(home, repo).unlink(missing_ok=True)
    folder = Path(found)
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", *_PICKLES)):
        raise GossamerError(
            f"{name}: holds no safetensors and no pytorch_model.bin on the hub; a GGUF file of it can be given by its "
            "own path"
        )
    if progress:
        progress(1, 1, f"fetching {name}")
    return folder


def _explain(error: Exception, revision: str | None) -> str:
    """One line about what the hub's package raised."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "is gated: accept its conditions on its page at the hub, then log in with `hf auth login` or HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision or 'main'} of it"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such file or folder, and no such model on the hub; a private one needs `hf auth login` or HF_TOKEN"
    if status in (401, 403):
        return f"the hub refuses it (status {status}): log in with `hf auth login` or HF_TOKEN"
    if constants.HF_HUB_OFFLINE:
        return "is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"
    cause = error
    while cause.__cause__ is not None and isinstance(cause, errors.LocalEntryNotFoundError):
        cause = cause.__cause__  # type: ignore[assignment]
    status = status or getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return f"the hub answers with status {status}; try again later"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return f"cannot be written to the hub's cache: {error.strerror or error}"
    if isinstance(error, errors.HFValidationError):
        return "no such file or folder, and no valid hub id"
    text = " ".join(str(cause).split()) or type(cause).__name__
    network = any(part in kind.__name__ for kind in type(cause).__mro__ for part in ("Connect", "Timeout", "Transport"))
    trouble = f"cannot be reached ({constants.ENDPOINT})" if network else "does not give it"
    return f"no such file or folder, and the hub {trouble}: {text:.200}"


def _folder(repo: str) -> Path:
    """Where the hub's cache keeps everything of a checkpoint."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _note(home: Path, repo: str) -> Path:
    return home / "hub" / f"{repo.replace('/', '--')}.json"


def fetched(home: Path) -> dict[str, Path]:
    """Returns the checkpoints in the hub's cache that gossamer fetched, by id, with their folders there."""
    found = {}
    for note in sorted((home / "hub").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            repo = str(json.loads(note.read_text(encoding="utf-8"))["repo"])
            if note == _note(home, repo) and parse(repo) == (repo, None) and _folder(repo).is_dir():
                found[repo] = _folder(repo)
    return found


def remove(home: Path, repo: str) -> None:
    """Removes a checkpoint from the hub's cache.

    Raises:
        GossamerError: it cannot be removed.
    """
    folder = _folder(repo)
    shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
    remove_folder(folder)
    _note(home, repo).unlink(missing_ok=True)
