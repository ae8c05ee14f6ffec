"""Qwen 2: Llama with biases of q, k and v, and perhaps a sliding window in its last layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import llama
from .fields import flag, integer
from .llama import PREFIX
from .relatives import windows
from .spec import Attention

__all__ = ["PREFIX", "biases", "describe", "plain", "sources", "unread", "window"]

_DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32768}
_OWN = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what is Llama's of a config; windows are not."""
    return {**_DEFAULTS, **{key: value for key, value in config.items() if key not in _OWN}}


def window(config: dict[str, Any]) -> list[int | None]:
    """Returns the sliding window of each layer, which those from `max_window_layers` on have."""
    size = integer(config, "sliding_window", 4096) if flag(config, "use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    first = 0 if first == 0 else integer(config, "max_window_layers", 28)
    return windows(config, lambda layer: layer >= first, size)


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    found = window(config)
    return lambda layer, attention: replace(attention, biases=("q", "k", "v"), window=found[layer])


_KIN = llama.Kin(plain, _attention)
describe, unread, biases, sources = _KIN.describe, _KIN.unread, _KIN.biases, _KIN.sources
