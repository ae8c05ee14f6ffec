"""Phi-3: Llama whose q, k and v are one stored matrix, gate and up another; a part of a head may be rotated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import keys, relatives
from .fields import integer, words
from .relatives import BLOCKS, ENDS, INSIDE
from .relatives import no_biases as biases
from .rope import Rotary, partial_rotary
from .sources import Source, place
from .spec import Block, Branch, Norm, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."

_KEYS = words(
    """
    head_dim hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers
    num_key_value_heads original_max_position_embeddings partial_rotary_factor rms_norm_eps rope_parameters rope_scaling
    rope_theta sliding_window tie_word_embeddings vocab_size
    """
)
_DEFAULTS = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
_OLDER = ("su", "yarn")  # what longrope was called


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = {**_DEFAULTS, **config}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(rope := config.get(key), dict):
            kind = rope.get("rope_type") or rope.get("type") or "default"
            if kind not in ("default", "longrope", *_OLDER):
                raise GossamerError(f"{key}: rope_type {kind!r:.80} is not one of phi3; there are: default, longrope")
            config[key] = {**rope, "rope_type": "longrope" if kind in _OLDER else kind, "type": None}
    return _outline(config, partial_rotary(config, relatives.head_dim(config), 1.0))


def _outline(config: dict[str, Any], turned: Rotary | None) -> Transformer:
    norm = Norm("rms", relatives.epsilon(config, default=1e-5))
    attention = relatives.attention(config, relatives.head_dim(config), relatives.rope(turned))
    block = Block((Branch(attention, norm), Branch(relatives.mlp(config), norm)))
    described = relatives.decoder(config, (block,), norm, turned.context if turned else 1)
    window = None if config.get("sliding_window") is None else integer(config, "sliding_window")
    return relatives.each_attention(described, lambda _, attention: replace(attention, window=window))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = _outline(config, None)
    fused: dict[str, tuple[int, int, int]] = {}
    for names in (("q", "k", "v"), ("gate", "up")):
        sizes = [outline.tensors[f"layers.0.{name}"][0] for name in names]
        fused |= {name: (sum(sizes[:at]), sizes[at], sum(sizes)) for at, name in enumerate(names)}
    stored = dict.fromkeys("qkv", "self_attn.qkv_proj") | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")
    return place(outline, ENDS, BLOCKS, {**INSIDE, **stored}, fused=fused)
