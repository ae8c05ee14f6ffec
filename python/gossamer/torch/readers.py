"""Which layers a model's own code tells from packed ones: what its forwards do, followed through their sources.

A packed layer stands in for a dense one wherever it is called. What else code can do with a layer (read its weight, ask
for its class, count its parameters) gives another result or an error, and where that can be known beforehand, the layer
had better stay dense. So every forward is walked through with sets of modules in the place of values (`walk.py`), and
what it does with them is told apart (`asking.py`, `tells.py`). Weights that code without a source reads are refused by
the packed layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .walk import Search

_OF_ALL_MODULES = torch.nn.modules.module._global_forward_pre_hooks, torch.nn.modules.module._global_forward_hooks


def readers(model: nn.Module, layers: Iterable[nn.Module]) -> dict[nn.Module, str]:
    """Finds the layers that the model's code tells from packed ones when the model runs.

    Args:
        model: The model, in the mode and with the settings in which it will run.
        layers: Those that are of interest.

    Returns:
        The reason by layer: "Class.forward reads its weight", or asks in another way for what a packed layer has not.
    """
    search = Search(frozenset(layers))
    for module in model.modules():
        if not any(inner in search.wanted for inner in module.modules()):
            continue
        itself = frozenset({module})
        if module not in search.wanted:
            if "forward" in module.__dict__:
                search.enter(module.__dict__["forward"], [itself])
            search.enter(type(module).forward, [itself])
            search.enter(type(module).__call__, [itself])
        for hooks in (module._forward_pre_hooks, module._forward_hooks, *_OF_ALL_MODULES):
            for hook in hooks.values():
                search.enter(hook, [itself])
    return search.found
