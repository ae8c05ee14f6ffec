"""What hangs on a linear layer beside its weight and bias: what another takes over, and what keeps it as it is."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from .stand_in import PackedWeight

# Shared with the layer before, so that the handles which `register_*hook` returned still remove them.
_HOOKS = {
    "forward hooks": ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "forward pre-hooks": ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    "backward hooks": ("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
}
_STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
PLAIN = {"in_features", "out_features", "nf", "nx", *nn.Linear(1, 1, device="meta").__dict__}
_EMPTY = types.CellType()
_NO_MARKS = {"_is_hf_initialized", "title"}  # what stands for a packed weight has these of its own
COMPUTED = "its weight is computed from others (a parametrization or a pruning mask): make that permanent first"


def obstacle(module: nn.Module, taken: frozenset[str]) -> str:
    """Why a dense layer has to stay what it is.

    Args:
        module: A linear layer.
        taken: Names that mean something else in the layer that would replace it.

    Returns:
        The reason, or nothing where the other layer can take over all that hangs on this one.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return COMPUTED
    if any(getattr(module, hooks, None) for hooks in _STATE_HOOKS):
        return "it has state-dict hooks, which know the names of a dense layer's tensors"
    if getattr(module, "_is_full_backward_hook", None) is False:
        return "it has a backward hook of the old kind, which sees torch's own product"
    besides = [*(name for name in module._parameters if name not in ("weight", "bias"))]
    besides += [*module._buffers, *module._modules]
    if besides:
        return f"it has {', '.join(besides)} beside weight and bias"
    for name in attributes(module, PLAIN):
        if hasattr(type(module), name):
            return f"it has a {name} of its own"
        if name in taken:
            return f"its attribute {name} means something else in a packed layer"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, which is more than a tensor"
    if weight.layout != torch.strided or weight.dim() != 2:
        return (
            f"its weight is no matrix, but {weight.dim()}-dimensional and {str(weight.layout).removeprefix('torch.')}"
        )
    if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
        return "its weight has gradient hooks"
    for name in vars(weight):
        if name != "_is_hf_initialized" and (name == "title" or hasattr(PackedWeight, name)):
            return f"its weight has a {name} of its own"
    return ""


def marks(weight: Any) -> dict[str, Any]:
    """Attributes that users set on a layer's weight, dense or packed."""
    return {name: value for name, value in vars(weight).items() if name not in _NO_MARKS}


def attributes(module: nn.Module, known: frozenset[str] | set[str]) -> list[str]:
    """Names of what users set on a module."""
    return [name for name in module.__dict__ if name not in known]


def carry_over(old: nn.Module, new: nn.Module, known: frozenset[str] | set[str] = PLAIN) -> str:
    """Gives a layer what hangs on the one that it replaces: hooks, attributes of both, the mode, the bias.

    Args:
        old: The layer before.
        new: The one in its place.
        known: Names of what is no attribute of a user's in `old`.

    Returns:
        What was taken over, in words; nothing where that goes without saying.
    """
    kept = []
    for what, names in _HOOKS.items():
        if any(getattr(old, name, None) for name in names):
            kept.append(what)
            for name in names:
                if name in old.__dict__:
                    new.__dict__[name] = old.__dict__[name]
    for name in attributes(old, known):
        new.__dict__[name] = old.__dict__[name]
        if not name.startswith("_"):
            kept.append(name)
    marked = marks(old.weight)
    vars(new.weight).update(marked)
    kept += [f"weight.{name}" for name in marked if not name.startswith("_")]
    if isinstance(old._parameters.get("bias"), nn.Parameter):  # optimizers and other layers may have it too
        new._parameters["bias"] = old._parameters["bias"]
    new.train(old.training)
    return f"keeps its {', '.join(kept)}" if kept else ""


def held_outside(model: nn.Module, layers: Iterable[nn.Module]) -> dict[nn.Module, str]:
    """Finds layers that plain attributes hold, too: lists, dicts, methods. There, none would be put in their place.

    Returns:
        The reason by layer.
    """
    wanted, found = frozenset(layers), dict[nn.Module, str]()
    for name, module in model.named_modules():
        for key in attributes(module, PLAIN):
            for one in held(module.__dict__[key]):
                if one in wanted:
                    found.setdefault(one, f"{f'{name}.' if name else ''}{key} has it, too, which is no module")
    return found


def held(value: Any, depth: int = 4) -> Iterator[nn.Module]:
    """The modules that something else has or calls: containers, functions with what is around them, any objects."""
    if isinstance(value, nn.Module):
        yield value
    elif depth:
        for part in _parts(value):
            yield from held(part, depth - 1)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, (dict, types.MappingProxyType)):  # other mappings may read files to make what they give
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, (type, types.ModuleType, torch.Tensor)):
        return ()
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]


def buffers_without_values(model: nn.Module) -> list[str]:
    """Names of buffers on the meta device that no state brings; torch computes with whatever it finds there.

    Those that `accelerate` has put elsewhere, and brings for each call, do not count.
    """
    found = []
    for name, module in model.named_modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None and buffer.is_meta and buffer.numel() and not hasattr(module, "_hf_hook"):
                found.append(f"{name}.{key}" if name else key)
    return found
