"""Typed access to config.json, which is untrusted: a value of the wrong type is one line that names its key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from ..errors import GossamerError
from .spec.mlp import Activation

FULL, SLIDING = "full_attention", "sliding_attention"
"""What `transformers` calls the kinds of layers."""


def words(text: str) -> frozenset[str]:
    """Returns the words of a text, for long lists of keys."""
    return frozenset(text.split())


_LARGEST = 1 << 24  # sizes beyond it are nonsense today, and products of two stay far from overflow


def integer(config: dict[str, Any], key: str, default: int | None = None, most: int = _LARGEST) -> int:
    """Returns a positive integer; a missing or null key gives the default.

    Raises:
        GossamerError: it is missing without a default, or not an integer from 1 to `most`.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise GossamerError(f"{key} is missing")
    if type(value) is not int or not 1 <= value <= most:
        raise GossamerError(f"{key} must be a whole number from 1 to {most}, got {value!r:.80}")
    return value


def quotient(key: str, size: int, other: str, parts: int) -> int:
    """Returns a size divided by a number of parts, as the width of one of many heads.

    Args:
        key: What the config calls the size.
        size: The size.
        other: What it calls the number.
        parts: The number.

    Raises:
        GossamerError: that is no whole number.
    """
    if size % parts:
        raise GossamerError(f"{key} {size} is not a multiple of {other} {parts}")
    return size // parts


def single(value: float) -> float:
    """Returns the float32 value next to a number."""
    return float(np.float32(value))


_ACTIVATIONS: dict[Any, Activation] = {
    **{name: name for name in get_args(Activation)},
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(config: dict[str, Any], key: str, default: str) -> Activation:
    """Returns an activation by what descriptions or `transformers` call it; a missing or null key gives the default.

    Raises:
        GossamerError: there is none of that name.
    """
    name = default if config.get(key) is None else config[key]
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise GossamerError(f"{key} {name!r:.80} is not supported; there are: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def layer_types(config: dict[str, Any], layers: int, default: Callable[[int], bool]) -> list[bool]:
    """Returns which layers have a sliding window.

    Args:
        config: Content of config.json.
        layers: How many there are.
        default: Whether a layer has one, by its number from 0, where the config does not say.

    Raises:
        GossamerError: `layer_types` is something else than a list of the two kinds, one for each layer.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return [default(layer) for layer in range(layers)]
    fair = isinstance(kinds, list) and len(kinds) == layers and all(kind in (FULL, SLIDING) for kind in kinds)
    if not fair:
        raise GossamerError(f"layer_types must be a list of {layers} times {FULL} or {SLIDING}, got {kinds!r:.80}")
    return [kind == SLIDING for kind in kinds]


def number(config: dict[str, Any], key: str, default: float | None = None, where: str = "") -> float:
    """Returns a positive finite number; a missing or null key gives the default.

    Raises:
        GossamerError: it is missing without a default, or not such a number.
    """
    value = config.get(key)
    name = f"{where}: {key}" if where else key
    if value is None:
        value = default
    if value is None:
        raise GossamerError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
        raise GossamerError(f"{name} must be a number above 0, got {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise GossamerError(f"{name} is beyond float, with {len(str(value))} digits") from None


def flag(config: dict[str, Any], key: str, default: bool = False) -> bool:
    """Returns a boolean; a missing or null key gives the default.

    Raises:
        GossamerError: it is something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise GossamerError(f"{key} must be true or false, got {value!r:.80}")
    return default if value is None else value
