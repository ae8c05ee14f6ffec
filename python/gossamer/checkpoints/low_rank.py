"""Low-rank branches of a checkpoint's linears, y = W x + U (V x), in the subfolder `low_rank`.

That is an adapter as PEFT writes it for LoRA (Hu et al. 2021), so `transformers` runs the same model after
`model.load_adapter("FOLDER/low_rank")`; V is its A, U its B.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..files import read_json
from ..safetensors_io import SafetensorsFile, SafetensorsWriter

FOLDER = "low_rank"
# What the factors of a weight are called: its canonical name and this.
LOW_RANK_U, LOW_RANK_V = ".low_rank_u", ".low_rank_v"
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_WEIGHT = ".weight"
_A, _B = ".lora_A.weight", ".lora_B.weight"
# What an adapter may ask for besides, and this module does not do.
_REFUSED = (
    "alpha_pattern",
    "rank_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "use_dora",
    "layer_replication",
)


@dataclass(frozen=True)
class LowRank:
    """U (V x).

    Attributes:
        u: [rows, rank].
        v: [rank, cols].
    """

    u: NDArray[np.float32]
    v: NDArray[np.float32]


def read_low_rank(folder: Path) -> dict[str, LowRank]:
    """Reads the branches of a checkpoint folder, by the name of the weight that each goes with; none is no error.

    Raises:
        GossamerError: a file is missing or not valid, or has something that is not supported; the line names the file,
            and the key or tensor.
    """
    folder = folder / FOLDER
    if not folder.is_dir():
        return {}
    path = folder / _CONFIG
    config = read_json(path)
    scale = _scale(path, config)
    file = SafetensorsFile(folder / _WEIGHTS)
    for name in file.tensors:
        if not name.startswith(_PREFIX) or not name.endswith((_A, _B)):
            raise GossamerError(f"{file.path}: tensor {name} is no factor of a linear")
    branches = {}
    for module in dict.fromkeys(name.removesuffix(_A).removesuffix(_B) for name in file.tensors):
        v, u = (file.float32(f"{module}{suffix}") for suffix in (_A, _B))
        if v.ndim != 2 or u.ndim != 2 or u.shape[1] != v.shape[0] or not v.shape[0]:
            raise GossamerError(
                f"{file.path}: tensors of {module} have shapes {list(u.shape)} and {list(v.shape)}, which do not fit"
            )
        branches[f"{module.removeprefix(_PREFIX)}{_WEIGHT}"] = LowRank(u, v * np.float32(scale))
    return branches


def _scale(path: Path, config: dict[str, Any]) -> float:
    if config.get("peft_type") != "LORA":
        raise GossamerError(f"{path}: peft_type {config.get('peft_type')!r:.80} is not supported; there is: LORA")
    for key in _REFUSED:
        if config.get(key):
            raise GossamerError(f"{path}: {key} is not supported")
    if config.get("bias", "none") != "none":
        raise GossamerError(f"{path}: bias {config['bias']!r:.80} is not supported; there is: none")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e300:
        raise GossamerError(f"{path}: r must be a number of at least 1 and lora_alpha a finite one")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def write_low_rank(folder: Path, branches: Mapping[str, LowRank]) -> None:
    """Writes branches of one rank into a checkpoint folder.

    Args:
        folder: The checkpoint, while it is written.
        branches: At least one, by the name of the weight that it goes with.

    Raises:
        GossamerError: a file cannot be written.
    """
    folder = folder / FOLDER
    folder.mkdir()
    modules = {name.removesuffix(_WEIGHT): branch for name, branch in branches.items()}
    rank = len(next(iter(modules.values())).v)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "inference_mode": True,
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for module, branch in modules.items():
        tensors[f"{_PREFIX}{module}{_A}"], tensors[f"{_PREFIX}{module}{_B}"] = branch.v, branch.u
    with SafetensorsWriter(folder / _WEIGHTS, list(tensors), alignment=4, metadata={"format": "pt"}) as writer:
        for name, values in tensors.items():
            writer.add(name, values, "F32")
