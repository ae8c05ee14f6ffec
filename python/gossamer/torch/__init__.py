"""gossamer for PyTorch: any model with pruned linear layers runs on packed weights.

import gossamer.torch
gossamer.torch.sparsify(model)
"""

from __future__ import annotations

from . import huggingface
from .layout import Layout
from .linear import SparseLinear
from .pruning import prune_linears
from .report import LayerReport, OtherWeight, Report
from .state import load, load_state_dict, save
from .swap import desparsify, sparsify

__all__ = [
    "LayerReport",
    "Layout",
    "OtherWeight",
    "Report",
    "SparseLinear",
    "desparsify",
    "load",
    "load_state_dict",
    "prune_linears",
    "save",
    "sparsify",
]

huggingface.tie()
