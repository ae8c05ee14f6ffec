"""Pruned checkpoints that benches make once and keep, under the names that bench/quality.py --keep gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gossamer


def pruned_once(
    dense: Path,
    work: Path,
    text: Path,
    method: str,
    sparsity: float,
    int4_group: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Returns a pruned checkpoint in `work`, made unless it is there.

    Args:
        dense: What it is made from.
        work: Folder that it is kept in.
        text: What it is calibrated on.
        method: One of `gossamer.pruning.METHODS`.
        sparsity: Fraction of zeros.
        int4_group: Inputs a scale, where it is rounded to int4 while it is pruned; 0 rounds nothing.
        progress: Called with (done, total, what).
    """
    folder = work / f"{method}-{sparsity:g}{f'-+int4of{int4_group}' if int4_group else ''}"
    if not folder.exists():
        options: dict[str, Any] = {"weights": "int4", "group": int4_group} if int4_group else {}
        gossamer.prune(dense, folder, method=method, sparsity=sparsity, calibration=text, progress=progress, **options)
    return folder
