"""Command R7B: attention and MLP side by side behind one norm; layers without a window know no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import keys, relatives
from .fields import flag, integer, number, single, words
from .relatives import BLOCKS, ENDS, INSIDE, QKVO
from .relatives import no_biases as biases
from .rope import rotary
from .sources import Source, place
from .spec import Block, Branch, Head, Norm, Rope, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    attention_bias head_dim hidden_act hidden_size intermediate_size layer_norm_eps layer_types logit_scale
    max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings
    rope_parameters rope_scaling rope_theta sliding_window sliding_window_pattern tie_word_embeddings vocab_size
    """
)
_DEFAULTS = {"sliding_window": 4096, "tie_word_embeddings": True, "max_position_embeddings": 8192}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    full = {**_DEFAULTS, **config}
    turned = rotary(full, relatives.head_dim(full))
    return _outline(config, relatives.rope(turned, interleaved=True), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    config = {**_DEFAULTS, **config}
    norm = Norm("layer", relatives.epsilon(config, "layer_norm_eps", 1e-5))
    window = None if config["sliding_window"] is None else integer(config, "sliding_window")
    pattern = integer(config, "sliding_window_pattern", 4)
    with_bias = QKVO if flag(config, "attention_bias") else ()
    attention = relatives.attention(config, relatives.head_dim(config), None, with_bias)
    mlp = Branch(relatives.mlp(config), None)

    def block(own: int | None) -> Block:
        mixer = replace(attention, window=own, positions=None if own is None else positions)
        return Block((Branch(mixer, None), mlp), parallel=True, norm=norm)

    found = relatives.windows(config, lambda layer: (layer + 1) % pattern != 0, window)
    kinds, which = relatives.by_layer([block(own) for own in found])
    head = Head(flag(config, "tie_word_embeddings"), scale=single(number(config, "logit_scale", 0.0625)))
    return relatives.decoder(config, kinds, norm, context, which=which, head=head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(_outline(config, None, 1), ENDS, BLOCKS, INSIDE | {"norm": "input_layernorm"})
