"""GLM-4: norms before and behind mixers, half of each head rotated in neighbouring pairs, gate and up one matrix."""

from __future__ import annotations

from typing import Any

from . import keys, relatives
from .fields import flag, words
from .relatives import BLOCKS, ENDS, INSIDE
from .relatives import no_biases as biases
from .rope import partial_rotary
from .sources import Source, place
from .spec import Block, Branch, Norm, Rope, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    attention_bias head_dim hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads
    num_hidden_layers num_key_value_heads original_max_position_embeddings partial_rotary_factor rms_norm_eps
    rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size
    """
)
_DEFAULTS = {"head_dim": 128, "num_key_value_heads": 2, "max_position_embeddings": 131072}
_STORED = INSIDE | {
    "gate": "mlp.gate_up_proj",
    "up": "mlp.gate_up_proj",
    "attn_behind": "post_self_attn_layernorm",
    "mlp_behind": "post_mlp_layernorm",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    full = {**_DEFAULTS, **config}
    turned = partial_rotary(full, relatives.head_dim(full), 0.5)
    return _outline(config, relatives.rope(turned, interleaved=True), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    config = {**_DEFAULTS, **config}
    norm = Norm("rms", relatives.epsilon(config, default=1.5625e-7))
    with_bias = ("q", "k", "v") if flag(config, "attention_bias", True) else ()
    attention = relatives.attention(config, relatives.head_dim(config), positions, with_bias)
    block = Block((Branch(attention, norm, norm), Branch(relatives.mlp(config), norm, norm)))
    return relatives.decoder(config, (block,), norm, context)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = _outline(config, None, 1)
    width = outline.tensors["layers.0.gate"][0]
    fused = {"gate": (0, width, 2 * width), "up": (width, width, 2 * width)}
    return place(outline, ENDS, BLOCKS, _STORED, fused=fused)
