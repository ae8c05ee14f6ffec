"""What a stopped run goes on from: one file with weights, masks and moments, replaced whole or not at all."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import GossamerError
from ..runs import run_folder
from ..safetensors_io import SafetensorsFile, SafetensorsWriter

_STATE = "state.safetensors"
_PROGRESS = "progress"  # all that is no tensor, as JSON; no part of the header, which has a limit


def training_folder(dst: Path, settings: dict[str, Any]) -> AbstractContextManager[Path]:
    """Gives the folder beside `dst` that a run keeps its state in; see `run_folder`."""
    return run_folder(dst, "training", "another process trains here", _STATE, settings)


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
    with SafetensorsWriter(folder / _STATE, [*tensors, _PROGRESS]) as writer:
        writer.add(_PROGRESS, np.frombuffer(json.dumps(progress).encode(), np.uint8))
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
    if set(file.tensors) != {*like, _PROGRESS}:
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
        progress = json.loads(bytes(file.raw(_PROGRESS)).decode())
        assert isinstance(progress, dict)
    except (ValueError, AssertionError):
        raise GossamerError(f"{file.path}: does not say how far the run was") from None
    return progress
