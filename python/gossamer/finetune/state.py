"""What a stopped run goes on from: one file with weights, masks and moments, replaced whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import GossamerError
from ..files import read_json
from ..folders import write_file
from ..safetensors_io import SafetensorsFile, SafetensorsWriter

_STATE, _SETTINGS, _LOCK = "state.safetensors", "settings.json", "lock"
_PROGRESS = "progress"  # the entry of the header that holds all that is no tensor


@contextmanager
def training_folder(dst: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Gives the folder beside `dst` that a run keeps its state in, and checks that it belongs to the same run.

    The folder stays when the block ends with an error and a state has been saved; otherwise it goes.

    Args:
        dst: Where the result will be.
        settings: What must not change between the parts of a run, ready for JSON.

    Raises:
        GossamerError: it was begun with other settings or holds something else, another process is at it, or it cannot
            be written.
    """
    folder = dst.with_name(f"{dst.name}.training")
    if folder.is_dir() and not (folder / _SETTINGS).exists() and any(_foreign(path) for path in folder.iterdir()):
        raise GossamerError(f"{folder}: exists already and holds no training run; it is left as it is")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.fdopen(os.open(folder / _LOCK, flags, 0o666), "w")
    except OSError as error:
        raise GossamerError(f"{folder}: cannot write: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GossamerError(f"{folder}: another process trains here") from None
        if has_state(folder):
            _check(folder, settings)
        else:
            try:
                write_file(folder / _SETTINGS, json.dumps(settings, indent=2) + "\n")
            except OSError as error:
                raise GossamerError(f"{folder}: cannot write: {error.strerror or error}") from None
        done = False
        try:
            yield folder
            done = True
        finally:
            if done or not has_state(folder):
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


def has_state(folder: Path) -> bool:
    """Whether a run can be gone on with."""
    return (folder / _STATE).exists()


def save_state(folder: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Writes the state beside the last one, has it reach the disk, and puts it in its place.

    Args:
        folder: Of the run.
        tensors: float32 and bool ones by name; bools take a bit each.
        progress: All that is no tensor, ready for JSON.

    Raises:
        GossamerError: the disk is full, or the file cannot be written for another reason; the last state stays.
    """
    with SafetensorsWriter(folder / _STATE, tensors, metadata={_PROGRESS: json.dumps(progress)}) as writer:
        for name, tensor in tensors.items():
            values = tensor.detach().cpu().numpy()
            writer.add(name, np.packbits(values) if values.dtype == np.bool_ else values)


def load_state(folder: Path, like: dict[str, Tensor]) -> dict[str, Any]:
    """Reads a state into tensors of the same names, types and shapes.

    Args:
        folder: Of the run.
        like: What to fill.

    Returns:
        All that is no tensor.

    Raises:
        GossamerError: the file is not valid, or is not of such a run.
    """
    file = SafetensorsFile(folder / _STATE)
    if set(file.tensors) != set(like):
        raise GossamerError(f"{file.path}: is not the state of such a run")
    for name, tensor in like.items():
        stored = file.raw(name)
        if tensor.dtype == torch.bool:
            stored = np.unpackbits(stored, count=tensor.numel()).astype(np.bool_).reshape(tuple(tensor.shape))
        if stored.shape != tuple(tensor.shape):
            raise GossamerError(f"{file.path}: tensor {name} has shape {list(stored.shape)}, not {list(tensor.shape)}")
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.array(stored)))
    try:
        progress = json.loads(file.metadata[_PROGRESS])
        assert isinstance(progress, dict)
    except (KeyError, ValueError, AssertionError):
        raise GossamerError(f"{file.path}: does not say how far the run was") from None
    return progress
