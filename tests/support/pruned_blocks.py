"""Pruning on the float64 model: its blocks one after another, and what became of their matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.spec import Transformer
from gossamer.formats import STORED
from gossamer.pruning.masks import Form, Target
from gossamer.pruning.methods import CALIBRATED
from gossamer.pruning.sequential import prune_blocks
from gossamer.pruning.walk import Texts
from reference_model import ReferenceModel


def pruned_blocks(
    model: Transformer, tensors: Mapping[str, NDArray[np.float32]], texts: Sequence[Texts], method: str, target: Target
) -> tuple[ReferenceModel, dict[str, Any], dict[str, int]]:
    """Returns the pruned model, its matrices in the order that they were made in, and experts that saw few tokens."""
    blocks, made = ReferenceModel(model, tensors), {}

    def replace(name: str, values: Any, _branch: Any) -> Any:
        blocks.set_weight(name, values)
        made[name] = values
        return values

    methods, forms = {STORED: CALIBRATED[method]}, dict.fromkeys(model.linears, Form(target))
    few = prune_blocks(blocks, model, texts, methods, forms, tensors.__getitem__, replace, lambda *_: None)
    return blocks, made, few
