"""Short runs of finetuning over the tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gossamer.checkpoints import open_checkpoint
from gossamer.finetune.options import Options
from gossamer.finetune.pipeline import finetune

TEXT = (
    "The spider spins a thread of gossamer, and the thread holds the spider. If the net is thin, the net is quick.\n\n"
)
QUICK = {"length": 32, "batch": 2, "tokens": 768, "lr": 2e-3, "precision": "f32", "validations": 1, "threads": 1}


def run(files: Path, dst: Path, student: str = "half", progress: Any = None, **options: Any) -> Any:
    chosen = Options(**{**QUICK, **options})
    return finetune(
        files / student, dst, teacher=files / "dense", data=[files / "text.txt"], options=chosen, progress=progress
    )


def weights(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    return {name: np.array(checkpoint.tensor(name)) for name in checkpoint.names()}
