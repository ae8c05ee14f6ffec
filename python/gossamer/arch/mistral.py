"""Mistral: Llama whose every layer has a sliding attention window."""

from __future__ import annotations

from typing import Any

from . import llama
from .llama import PREFIX
from .relatives import one_window

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    config = {**_DEFAULTS, **config}
    one_window(config)
    return config


_KIN = llama.Kin(_plain, flags=("attention_bias", "mlp_bias"))
describe, unread, biases, sources = _KIN.describe, _KIN.unread, _KIN.biases, _KIN.sources
