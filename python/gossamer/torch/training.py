"""Which linear layers are still being trained, so that packing, which freezes values, would end that in silence."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trained_layers(model: nn.Module, linears: Mapping[str, nn.Module], trainable: bool) -> dict[str, str]:
    """Finds the layers that have still to learn.

    Args:
        model: The model.
        linears: Its linear layers by name.
        trainable: Whether values that are not zero stay trainable when they are packed.

    Returns:
        Reasons to leave layers alone, by name.
    """
    weights = {name: module._parameters.get("weight") for name, module in linears.items()}
    some_are_frozen = any(weight is not None and not weight.requires_grad for weight in weights.values())
    adapters, read = adapters_of(model)
    reasons = {}
    for name, weight in weights.items():
        if name in read:
            reasons[name] = "its adapter (DoRA) reads the values of the weight"
        elif any(name.startswith(prefix) for prefix in adapters):
            reasons[name] = "part of an adapter, which may be trained, merged or exchanged"
        elif weight is None or not weight.requires_grad:
            continue
        elif _is_zero(weight):
            reasons[name] = "all zero and not frozen: it has still to learn, and zeros of a packed layer cannot"
        elif some_are_frozen and not trainable:
            reasons[name] = (
                "being trained, since other layers are frozen and it is not: freeze it, or pack it trainable"
            )
    return reasons


def _is_zero(weight: Tensor) -> bool:
    return weight.layout == torch.strided and not weight.is_meta and not bool(weight.detach().any())


def adapters_of(model: nn.Module) -> tuple[list[str], set[str]]:
    """Returns what the names of parts of `peft`'s adapters begin with, and the layers whose values these read."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return [], set()
    prefixes, read = [], set()
    for name, module in model.named_modules():
        if isinstance(module, tuners.BaseTunerLayer):
            prefixes += [f"{name}.{key}." for key in module.adapter_layer_names]
            if getattr(module, "lora_magnitude_vector", None):
                read.add(f"{name}.base_layer")
    return prefixes, read
