"""Qwen 3: Llama with norms of queries and keys, and perhaps a sliding window in its last layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import llama, qwen2
from .llama import PREFIX
from .relatives import QK_NORMS, epsilon
from .spec import Attention, Norm, QkNorm

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {"head_dim": 128, **qwen2.plain(config)}


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    found, norm = qwen2.window(config), QkNorm(Norm("rms", epsilon(config)))
    return lambda layer, attention: replace(attention, qk_norm=norm, window=found[layer])


_KIN = llama.Kin(_plain, _attention, QK_NORMS, ("attention_bias",))
describe, unread, biases, sources = _KIN.describe, _KIN.unread, _KIN.biases, _KIN.sources
