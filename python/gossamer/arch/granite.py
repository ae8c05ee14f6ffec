"""Granite: Llama with factors on its embedding, its scores, what joins the stream, and its logits."""

from __future__ import annotations

from typing import Any

from . import keys, relatives
from .fields import flag, number, single, words
from .relatives import BLOCKS, ENDS, INSIDE, QKVO
from .relatives import no_biases as biases
from .rope import rotary
from .sources import Source, place
from .spec import Block, Branch, Embedding, Head, Norm, Rope, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    attention_bias attention_multiplier embedding_multiplier hidden_act hidden_size intermediate_size logits_scaling
    max_position_embeddings mlp_bias num_attention_heads num_hidden_layers num_key_value_heads
    original_max_position_embeddings residual_multiplier rms_norm_eps rope_parameters rope_scaling rope_theta
    tie_word_embeddings vocab_size
    """
)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    turned = rotary(config, relatives.head_dim(config))
    return _outline(config, relatives.rope(turned), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    norm = Norm("rms", relatives.epsilon(config))
    scale = single(number(config, "residual_multiplier", 1.0))
    attention = relatives.attention(
        config,
        relatives.head_dim(config),
        positions,
        QKVO if flag(config, "attention_bias") else (),
        single(number(config, "attention_multiplier", 1.0)),
    )
    mlp = relatives.mlp(config, biases=("gate", "up", "down") if flag(config, "mlp_bias") else ())
    block = Block((Branch(attention, norm, scale=scale), Branch(mlp, norm, scale=scale)))
    embedding = Embedding(scale=single(number(config, "embedding_multiplier", 1.0)))
    head = Head(flag(config, "tie_word_embeddings"), scale=single(1 / number(config, "logits_scaling", 1.0)))
    return relatives.decoder(config, (block,), norm, context, embedding=embedding, head=head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(_outline(config, None, 1), ENDS, BLOCKS, INSIDE)
