"""Low-rank branches of a checkpoint's linears, y = W x + U (V x), in the subfolder `low_rank`.

That is an adapter as PEFT writes it for LoRA (Hu et al. 2021), so `transformers` runs the same model after
`model.load_adapter("FOLDER/low_rank")`: see `lora`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..safetensors_io import SafetensorsWriter
from .lora import CONFIG, PREFIX, WEIGHTS, A, B, LowRank, read_lora

FOLDER = "low_rank"
# What the factors of a weight are called: its canonical name and this.
LOW_RANK_U, LOW_RANK_V = ".low_rank_u", ".low_rank_v"
_WEIGHT = ".weight"


def read_low_rank(folder: Path) -> dict[str, LowRank]:
    """Reads the branches of a checkpoint folder, by the name of the weight that each goes with; none is no error.

    Raises:
        GossamerError: as `read_lora`.
    """
    folder = folder / FOLDER
    return {f"{module}{_WEIGHT}": branch for module, branch in read_lora(folder).items()} if folder.is_dir() else {}


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
        "target_modules": sorted(modules),  # not every layer need have one
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for module, branch in modules.items():
        tensors[f"{PREFIX}{module}{A}"], tensors[f"{PREFIX}{module}{B}"] = branch.v, branch.u
    with SafetensorsWriter(folder / WEIGHTS, list(tensors), alignment=4, metadata={"format": "pt"}) as writer:
        for name, values in tensors.items():
            writer.add(name, values, "F32")
