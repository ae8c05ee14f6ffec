"""Mistral: Llama with a sliding attention window, so that inside one window the two are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import llama
from .fields import integer
from .llama import PREFIX, biases, sources, unread
from .spec import Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`. The context ends with the sliding window, where there is one."""
    plain = llama.describe(config)
    if "sliding_window" in config and config["sliding_window"] is None:
        return plain
    return replace(plain, context=min(plain.context, integer(config, "sliding_window", 4096)))
