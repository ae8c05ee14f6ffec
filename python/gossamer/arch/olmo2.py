"""OLMo 2: Llama with norms behind its mixers in place of before them, and norms of all queries and all keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import keys, relatives
from .fields import flag, words
from .relatives import BLOCKS, ENDS, INSIDE, QK_NORMS, QKVO
from .relatives import no_biases as biases
from .rope import rotary
from .sources import Source, place
from .spec import Block, Branch, Norm, QkNorm, Rope, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
KEYS = words(
    """
    attention_bias hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads
    num_hidden_layers num_key_value_heads original_max_position_embeddings rms_norm_eps rope_parameters rope_scaling
    rope_theta tie_word_embeddings vocab_size
    """
)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    turned = rotary(config, relatives.head_dim(config))
    each = [(relatives.rope(turned), None)] * relatives.layers(config)
    return outline(config, each, turned.context)


def outline(config: dict[str, Any], layers: Sequence[tuple[Rope | None, int | None]], context: int) -> Transformer:
    """Puts a model together.

    Args:
        config: Content of config.json.
        layers: Positions and window of each.
        context: Tokens that a sequence may hold.
    """
    norm = Norm("rms", relatives.epsilon(config, default=1e-5))
    with_bias = QKVO if flag(config, "attention_bias") else ()
    width, mlp = relatives.head_dim(config), Branch(relatives.mlp(config), None, norm)
    kinds, which = relatives.by_layer(
        [
            Block(
                (
                    Branch(
                        replace(
                            relatives.attention(config, width, positions, with_bias),
                            window=window,
                            qk_norm=QkNorm(norm, "row"),
                        ),
                        None,
                        norm,
                    ),
                    mlp,
                )
            )
            for positions, window in layers
        ]
    )
    return relatives.decoder(config, kinds, norm, context, which=which)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    described = outline(config, [(None, None)] * relatives.layers(config), 1)
    behind = {"attn_behind": "post_attention_layernorm", "mlp_behind": "post_feedforward_layernorm"}
    return place(described, ENDS, BLOCKS, INSIDE | behind | QK_NORMS)
