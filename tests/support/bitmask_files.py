"""Checkpoints with tensors of `sparse-bitmask` and `sparse-24-bitmask`, as their writers made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.safetensors_io import SafetensorsWriter, round_to
from tiny import tiny_config, tiny_llama, tiny_tensors

Parts = dict[str, NDArray[Any]]


def compress(values: NDArray[np.float32]) -> Parts:
    """The parts of `sparse-bitmask`, by its definition."""
    rows = values.reshape(-1, values.shape[-1])
    mask = rows != 0
    counts = mask.sum(1)
    offsets = (np.cumsum(counts) - counts).astype(np.int64)
    return {
        "compressed": values[values != 0],
        "bitmask": np.packbits(mask, axis=1, bitorder="little").reshape(*values.shape[:-1], -1),
        "row_offsets": offsets if values.ndim == 2 else offsets.reshape(()),
        "shape": np.array(values.shape, np.int64),
    }


def compress_24(values: NDArray[np.float32]) -> Parts:
    """The parts of `sparse-24-bitmask`: the two largest of every four, even where they are zero."""
    groups = np.abs(values.reshape(len(values), -1, 4))
    kept = (groups.argsort(2).argsort(2) >= 2).reshape(values.shape)
    return {
        "compressed": values[kept].reshape(len(values), -1),
        "bitmask": np.packbits(kept, axis=1, bitorder="little"),
        "shape": np.array(values.shape, np.int64)[:, None],
    }


def write(path: Path, tensors: Parts, dtype: str = "f32") -> Path:
    stored = {"f32": "F32", "f16": "F16", "bf16": "BF16"}[dtype]
    with SafetensorsWriter(path, tensors, alignment=8) as writer:
        for name, values in tensors.items():
            if values.dtype == np.float32:
                writer.add(name, round_to(values, dtype), stored)
            else:
                writer.add(name, values)
    return path


def sparse_checkpoint(path: Path, kind: str, dtype: str = "f32") -> tuple[Path, Parts]:
    """A tiny checkpoint with compressed tensors, named as three generations of the writer did."""
    folder = tiny_llama(path, sparsity=0.6, tie_word_embeddings=True)
    dense = tiny_tensors(tiny_config(tie_word_embeddings=True), sparsity=0.6)
    stored: Parts = {}
    for name, values in dense.items():
        if kind == "everything":  # up to 0.8.1: every parameter, under its full name
            stored |= {f"{name}.{part}": data for part, data in compress(values).items()}
        elif "_proj" not in name:
            stored[name] = values
        elif kind == "modules":
            stored |= {f"{name.removesuffix('.weight')}.{part}": data for part, data in compress(values).items()}
        else:
            groups = values.reshape(len(values), -1, 4)
            groups[np.abs(groups).argsort(2).argsort(2) < 2] = 0
            stored |= {f"{name.removesuffix('.weight')}.{part}": data for part, data in compress_24(values).items()}
    write(folder / "model.safetensors", stored, dtype)
    return folder, dense
