"""Mistral: Llama whose every layer has a sliding attention window."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import llama
from .llama import PREFIX

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    config = {**_DEFAULTS, **config}
    kinds, windows = config.get("layer_types"), config["sliding_window"] is not None
    if isinstance(kinds, list) and any((kind == "sliding_attention") != windows for kind in kinds):
        raise GossamerError("layer_types of mistral must all be as sliding_window says")
    if windows and config.get("use_sliding_window") is False:  # which transformers does not read here
        raise GossamerError(f"use_sliding_window false contradicts sliding_window {config['sliding_window']}")
    return config


_KIN = llama.Kin(_plain, flags=("attention_bias", "mlp_bias"))
describe, unread, biases, sources = _KIN.describe, _KIN.unread, _KIN.biases, _KIN.sources
