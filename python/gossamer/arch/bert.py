"""BERT: learned positions, token types, norms behind the sums; the states of its tokens are what it gives."""

from __future__ import annotations

from typing import Any

from . import keys
from .encoders import ENDS, INSIDE, behind, encoder
from .fields import integer, words
from .relatives import no_biases as biases
from .sources import Source, place
from .spec import Transformer

__all__ = ["KEYS", "PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "bert."
KEYS = words(
    """
    add_cross_attention hidden_act hidden_size intermediate_size is_decoder layer_norm_eps max_position_embeddings
    num_attention_heads num_hidden_layers position_embedding_type tie_word_embeddings type_vocab_size vocab_size
    """
)
_POOLER = words(  # of a part that nothing reads here, in configs of Google's
    "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type"
)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    return encoder(config, types=integer(config, "type_vocab_size", 2))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, KEYS | _POOLER)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(describe(config), behind(PREFIX, ENDS), f"{PREFIX}encoder.layer.{{}}.", INSIDE)
