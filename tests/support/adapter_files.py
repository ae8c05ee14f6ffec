"""Adapters as other programs write them, by the definitions of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny import save_safetensors

Array = NDArray[np.float32]
Factors = dict[str, tuple[Array, Array]]
"""B [outputs, rank] and A [rank, inputs] by module."""


def factors(shapes: dict[str, tuple[int, int]], rank: int, seed: int = 0) -> Factors:
    """Seeded factors of modules [outputs, inputs], small enough that activations stay of order one."""
    rng = np.random.default_rng(seed)
    return {
        module: (
            (rng.standard_normal((rows, rank)) / (4 * np.sqrt(rank))).astype(np.float32),
            (rng.standard_normal((rank, cols)) / np.sqrt(cols)).astype(np.float32),
        )
        for module, (rows, cols) in shapes.items()
    }


def write_lora(folder: Path, made: Factors, more: dict[str, Array] | None = None, **config: Any) -> Path:
    """Writes a PEFT folder.

    Args:
        folder: To make.
        made: The factors.
        more: Further tensors.
        config: Keys of adapter_config.json that are others than here.
    """
    folder.mkdir(parents=True)
    rank = len(next(iter(made.values()))[1])
    plain = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.1,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "init_lora_weights": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in made}),
    }
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}), encoding="utf-8")
    tensors = {}
    for module, (b, a) in made.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_safetensors(folder / "adapter_model.safetensors", {**tensors, **(more or {})})
    return folder


def sparse(shape: tuple[int, ...], seed: int, share: float = 0.05) -> Array:
    """A seeded tensor of zeros but for some values."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, rng.standard_normal(shape) / 4, 0).astype(np.float32)


def write_differences(path: Path, tensors: dict[str, Array], whole: tuple[str, ...] = ()) -> Path:
    """Writes a file of differences, as places and values, but for those tensors that are stored whole."""
    stored: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, values in tensors.items():
        if name in whole:
            stored[name] = ("F32", values)
        else:
            stored[f"{name}.indices"] = ("I64", np.array(np.nonzero(values), np.int64))
            stored[f"{name}.values"] = ("F32", values[np.nonzero(values)])
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, values) in stored.items():
        raw = np.ascontiguousarray(values).tobytes()
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path
