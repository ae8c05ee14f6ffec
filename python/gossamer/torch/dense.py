"""Dense linear layers as they come: which can be packed, their parts, and their values rounded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cuda_roofline import card_machine
from ..formats import FORMATS, GROUPS, INTEGER_TYPES, TYPES
from ..packing import Rounded, round_values
from ..planner import Machine, this_machine
from .layout import ACTIVATIONS, NAMES


def dense_parts(linear: nn.Module, name: str = "") -> tuple[Tensor, Tensor | None]:
    """Returns a dense layer's weight [out, in] and bias; raises TypeError for other modules."""
    title = name or type(linear).__name__
    if is_conv1d(linear):
        return linear.weight.t(), linear.bias  # type: ignore[operator, return-value]
    if type(linear) is not nn.Linear:
        raise TypeError(
            f"{title}: a torch.nn.Linear can be packed, not {type(linear).__module__}.{type(linear).__name__}"
        )
    return linear.weight, linear.bias


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the `Conv1D` of transformers: a linear layer with a transposed weight."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def machine_of(device: torch.device) -> Machine:
    """What the planner chooses formats for: the card that a weight lies on, or the processor."""
    return card_machine(device.index) if device.type == "cuda" else this_machine()


def check_options(format: str, weights: str, group: int, activations: str, trainable: bool) -> None:
    """Raises ValueError for an option that is unknown or does not go with the others."""
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
