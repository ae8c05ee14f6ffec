"""Dense linear layers as they come: which can be packed, their parts, and their values rounded."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import FORMATS, GROUPS, INTEGER_TYPES, TYPES
from ..gpu.dtypes import NAMES
from ..gpu.roofline import gpu_machine
from ..kinds import check_flag
from ..packing.matrix import Rounded, round_values
from ..packing.planner import Machine, this_machine
from .layout import ACTIVATIONS

LINEAR, CONV1D = "torch.nn.modules.linear.Linear", "transformers.pytorch_utils.Conv1D"
# Subclasses of Linear that compute what a Linear does, by name, since nobody has to have them.
_SUBCLASSES = (
    "transformers.models.falcon.modeling_falcon.FalconLinear",
    "transformers.models.esm.modeling_esmfold.EsmFoldLinear",
)
_KINDS = {kind.rpartition(".")[2]: kind for kind in (LINEAR, CONV1D, *_SUBCLASSES)}


def kind_of(module: nn.Module) -> str:
    """The qualified name of a linear layer's class, where it is one of those that can be packed; empty otherwise."""
    found = f"{type(module).__module__}.{type(module).__qualname__}"
    return found if _KINDS.get(type(module).__name__) == found else ""


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the `Conv1D` of transformers: a linear layer with a transposed weight."""
    return kind_of(module) == CONV1D


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of any kind, packed ones apart."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_patched(module: nn.Module) -> bool:
    """Whether somebody gave a module's class another forward than the one that it was written with."""
    files = {getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in type(module).__mro__}
    code = getattr(type(module).forward, "__code__", None)
    return getattr(code, "co_filename", None) not in files


def dense_parts(linear: nn.Module, name: str = "") -> tuple[Tensor, Tensor | None]:
    """Returns a dense layer's weight [out, in] and bias; raises TypeError for other modules."""
    if not kind_of(linear):
        kind = f"{type(linear).__module__}.{type(linear).__name__}"
        raise TypeError(f"{name or type(linear).__name__}: a torch.nn.Linear can be packed, not {kind}")
    weight: Any = linear.weight
    bias: Any = linear.bias
    return weight.t() if is_conv1d(linear) else weight, bias


def as_kind(linear: nn.Linear, kind: str) -> nn.Module:
    """Turns a Linear into a layer of the kind that it stands for."""
    if kind == LINEAR:
        return linear
    module, _, name = kind.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if kind != CONV1D:
        linear.__class__ = found
        return linear
    conv: Any = found(0, 0)
    conv.nf, conv.nx = linear.out_features, linear.in_features
    conv.weight = nn.Parameter(linear.weight.detach().t().contiguous(), linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv.train(linear.training)  # type: ignore[no-any-return]


def machine_of(device: torch.device) -> Machine:
    """What the planner chooses formats for: the GPU that a weight lies on, or the processor."""
    return gpu_machine(device.index) if device.type == "cuda" else this_machine()


def check_options(format: str, weights: str, group: int, activations: str, trainable: bool) -> None:
    """Raises ValueError for an option that is unknown or goes with no other one, GossamerError for another kind."""
    check_flag("trainable", trainable)
    for option, value, allowed in (
        ("format", format, ("auto", *FORMATS)),
        ("weights", weights, ("auto", *TYPES)),
        ("activations", activations, ACTIVATIONS),
    ):
        if value not in allowed:
            raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(map(str, GROUPS))}, got {group!r}")
    if trainable and (weights in INTEGER_TYPES or format not in ("auto", "bitmap")):
        raise ValueError(f"trainable layers have format bitmap and float values, not {format} and {weights}")


def round_layer(weight: Tensor, weights: str, group: int, title: str) -> Rounded:
    """Rounds a weight [rows, cols] to the type asked for, "auto" for its own.

    Raises:
        TypeError: the weight's type cannot be stored.
        ValueError: it holds NaN or values that do not fit, or has no values (meta).
    """
    check_weight(weight, weights, title)
    try:
        return round_values(
            weight.detach().float().cpu().numpy(), NAMES[weight.dtype] if weights == "auto" else weights, group
        )
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from None


def check_weight(weight: Tensor, weights: str, title: str) -> None:
    """Raises TypeError or ValueError for a weight that cannot be packed with values of that type."""
    if weight.is_meta:
        raise ValueError(f"{title}: its weight is on device meta, which has no values")
    if weight.dtype not in NAMES:
        raise TypeError(f"{title}: weights must be float32, bfloat16 or float16, got {weight.dtype}")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(
            f"{title}: a weight must be a matrix with at least one row and column, got {tuple(weight.shape)}"
        )
    if bool(torch.isnan(weight.detach()).any()):
        raise ValueError(f"{title}: its weight holds NaN")
    if weights in INTEGER_TYPES and not bool(torch.isfinite(weight.detach()).all()):
        raise ValueError(f"{title}: its weight holds infinite values, which cannot be stored as {weights}")
