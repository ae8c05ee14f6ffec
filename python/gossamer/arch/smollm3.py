"""SmolLM 3: Llama with layers that know no positions, every fourth one, which alone may have a sliding window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import llama
from .fields import flag, integer
from .llama import PREFIX
from .relatives import layers, windows
from .spec import Attention

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_DEFAULTS = {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True}
_THETA = 2000000.0
_OWN = ("no_rope_layers", "no_rope_layer_interval", "use_sliding_window", "sliding_window", "layer_types")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    left = {key: value for key, value in config.items() if key not in _OWN}
    return {**_DEFAULTS, "rope_theta": _THETA, **left}


def _rotated(config: dict[str, Any]) -> list[bool]:
    """Which layers know positions."""
    count, given = layers(config), config.get("no_rope_layers")
    if given is None:
        interval = integer(config, "no_rope_layer_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if not isinstance(given, list) or len(given) < count or any(item not in (0, 1) for item in given):
        raise GossamerError(f"no_rope_layers must be a list of {count} times 0 or 1, got {given!r:.80}")
    return [bool(item) for item in given[:count]]


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    rotated, window = _rotated(config), None
    if flag(config, "use_sliding_window") and config.get("sliding_window") is not None:
        window = integer(config, "sliding_window")
    found = windows(config, lambda layer: not rotated[layer], window)

    def change(layer: int, attention: Attention) -> Attention:
        positions = attention.positions if rotated[layer] else None
        return replace(attention, positions=positions, window=found[layer])

    return change


_KIN = llama.Kin(_plain, _attention, flags=("attention_bias", "mlp_bias"))
describe, unread, biases, sources = _KIN.describe, _KIN.unread, _KIN.biases, _KIN.sources
