"""One-shot pruning of a checkpoint: magnitude, Wanda, SparseGPT and ADMM, unstructured or N:M."""

from __future__ import annotations

from .allocation import ALLOCATIONS
from .masks import Target
from .pipeline import Report, prune
from .solvers import METHODS, admm, magnitude, sparsegpt, wanda

__all__ = ["ALLOCATIONS", "METHODS", "Report", "Target", "admm", "magnitude", "prune", "sparsegpt", "wanda"]
