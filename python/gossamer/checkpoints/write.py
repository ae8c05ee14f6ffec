"""Ordinary Hugging Face folders, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..folders import new_folder
from ..formats import INTEGER_TYPES
from ..safetensors_io import SafetensorsWriter, round_to
from .base import Checkpoint
from .folder import FILE, TYPE_NAMES, FolderCheckpoint

_COMPRESSION_KEYS = ("quantization_config", "compression_config", "sparsity_config")
_TYPE_KEYS = ("dtype", "torch_dtype")


def refuse_unwritable(checkpoint: Checkpoint) -> None:
    """Raises `GossamerError` where a folder has a tensor that `write_checkpoint` could not write again."""
    for name in checkpoint.names() if isinstance(checkpoint, FolderCheckpoint) else ():
        if (dtype := checkpoint.dtype(name)) not in ("f32", "f16", "bf16", *INTEGER_TYPES):  # those become f32
            raise GossamerError(f"{checkpoint.path}: tensor {name} has type {dtype}; f32, f16 and bf16 are supported")


def write_checkpoint(
    dst: str | Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, NDArray[np.float32], str]],
    source: Checkpoint,
) -> None:
    """Writes an ordinary Hugging Face checkpoint folder, or nothing.

    Args:
        dst: Folder to make; must not exist, or be empty.
        config: Content of config.json; what it says of a compression is left out, since nothing is compressed here, and
            the type that it has weights loaded as is float32 where some become that, which would lose digits otherwise.
        tensors: Name, values and stored type ("f32", "f16", "bf16") of tensors of `source`; taken one at a time.
        source: Where tokenizer files and the like come from.

    Raises:
        GossamerError: `dst` is in use, or cannot be written.
    """
    folder = Path(dst)
    with new_folder(folder) as part:
        source.copy_companions(part)
        wider = False
        # Most readers take each tensor of the file for a weight, so fillers come only where a type needs them.
        with SafetensorsWriter(part / FILE, source.names(), alignment=4, metadata={"format": "pt"}) as writer:
            for name, values, dtype in tensors:
                wider |= dtype == "f32" != source.dtype(name)
                writer.add(name, round_to(values, dtype), TYPE_NAMES[dtype])
        plain = {key: value for key, value in config.items() if key not in _COMPRESSION_KEYS}
        if wider:
            plain = _loaded_as_float32(plain)
        (part / "config.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def _loaded_as_float32(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config that has weights loaded as float32, where it says a type: of itself or of the text within."""
    found = {key: "float32" if key in _TYPE_KEYS and value is not None else value for key, value in config.items()}
    if isinstance(text := config.get("text_config"), dict):
        found["text_config"] = _loaded_as_float32(text)
    return found
