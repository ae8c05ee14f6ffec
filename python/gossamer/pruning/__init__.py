"""One-shot pruning of a checkpoint: magnitude, Wanda, SparseGPT and ADMM, unstructured or N:M."""

from __future__ import annotations

from .allocation import ALLOCATIONS
from .alternating import admm
from .masks import Target
from .options import Options
from .pipeline import prune, prune_checkpoint
from .result import PrunedCheckpoint, Report
from .solvers import DEFAULT_METHOD, METHODS, magnitude, sparsegpt, wanda

__all__ = [
    "ALLOCATIONS",
    "DEFAULT_METHOD",
    "METHODS",
    "Options",
    "PrunedCheckpoint",
    "Report",
    "Target",
    "admm",
    "magnitude",
    "prune",
    "prune_checkpoint",
    "sparsegpt",
    "wanda",
]
