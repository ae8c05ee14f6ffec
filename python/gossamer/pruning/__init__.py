"""One-shot pruning of a checkpoint: magnitude, Wanda, SparseGPT and ADMM, unstructured or N:M."""

from __future__ import annotations

from .allocation import ALLOCATIONS
from .masks import Target
from .methods import DEFAULT_METHOD, METHODS
from .methods.admm import admm
from .methods.magnitude import magnitude
from .methods.sparsegpt import sparsegpt
from .methods.wanda import wanda
from .options import PruneOptions
from .pipeline import prune, prune_checkpoint
from .result import PrunedCheckpoint, Report

__all__ = [
    "ALLOCATIONS",
    "DEFAULT_METHOD",
    "METHODS",
    "PruneOptions",
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
