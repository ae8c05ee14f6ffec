"""Ministral 3: Mistral whose queries grow with their position (Llama 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import llama
from .fields import number, single
from .llama import PREFIX
from .relatives import one_window
from .rope import original
from .spec import Attention, QueryScale

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_ROPE = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_DEFAULTS = {
    "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144,
}  # fmt: skip
_OWN = ("llama_4_scaling_beta", "max_position_embeddings")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    given = config.get("rope_scaling") or config.get("rope_parameters")
    given = _ROPE if given is None else given
    if not isinstance(given, dict):
        raise GossamerError(f"rope_parameters must be an object, got {given!r:.80}")
    return given


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    one_window(config)
    rope = {key: value for key, value in _rope(config).items() if key not in _OWN}
    return {**_DEFAULTS, **config, "rope_parameters": rope, "rope_scaling": None}


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    rope = _rope(config)
    beta = single(number(rope, "llama_4_scaling_beta", None, "rope_parameters"))
    scale = QueryScale(beta, original(config, rope, None))
    return lambda _, attention: replace(attention, query_scale=scale)


_KIN = llama.Kin(_plain, _attention)
describe, unread, biases, sources = _KIN.describe, _KIN.unread, _KIN.biases, _KIN.sources
