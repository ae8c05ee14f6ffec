"""One-shot pruning of a checkpoint: magnitude, Wanda, SparseGPT and ADMM, unstructured or N:M."""

from __future__ import annotations

from .allocation import ALLOCATIONS
from .masks import Target
from .pipeline import Report, prune
from .solvers import DEFAULT_METHOD, METHODS, admm, magnitude, sparsegpt, wanda

__all__ = [
    "ALLOCATIONS",
    "DEFAULT_METHOD",
    "METHODS",
    "Report",
    "Target",
    "admm",
    "magnitude",
    "prune",
    "sparsegpt",
    "wanda",
]
