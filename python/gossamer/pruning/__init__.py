"""One-shot pruning of a checkpoint: magnitude, Wanda and SparseGPT, unstructured or N:M."""

from __future__ import annotations

from .masks import Target
from .pipeline import Report, prune
from .solvers import METHODS, magnitude, sparsegpt, wanda

__all__ = ["METHODS", "Report", "Target", "magnitude", "prune", "sparsegpt", "wanda"]
