"""StarCoder2: layer norms, a plain MLP with a GELU, grouped queries, rotary positions, a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import keys, relatives
from .fields import flag, integer, words
from .relatives import BLOCKS, ENDS, INSIDE, QKVO
from .relatives import no_biases as biases
from .rope import rotary
from .sources import Source, place
from .spec import Block, Branch, Norm, Rope, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    embedding_dropout head_dim hidden_act hidden_size intermediate_size max_position_embeddings mlp_type norm_epsilon
    norm_type num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings
    residual_dropout rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings use_bias vocab_size
    """
)
_DEFAULTS = {"num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    full = {**_DEFAULTS, **config}
    turned = rotary(full, relatives.head_dim(full))
    return _outline(config, relatives.rope(turned), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    config = {**_DEFAULTS, **config}
    norm = Norm("layer", relatives.epsilon(config, "norm_epsilon", 1e-5), bias=True)
    with_bias = flag(config, "use_bias", True)
    attention = relatives.attention(config, relatives.head_dim(config), positions, QKVO if with_bias else ())
    window = None if config.get("sliding_window") is None else integer(config, "sliding_window")
    mlp = relatives.mlp(config, gated=False, biases=("up", "down") if with_bias else (), act="gelu_pytorch_tanh")
    block = Block((Branch(replace(attention, window=window), norm), Branch(mlp, norm)))
    return relatives.decoder(config, (block,), norm, context)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(_outline(config, None, 1), ENDS, BLOCKS, INSIDE | {"up": "mlp.c_fc", "down": "mlp.c_proj"})
