"""MPNet: RoBERTa without token types, and with T5's relative biases."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import keys
from .encoders import ENDS, INSIDE, behind, encoder
from .fields import integer, words
from .relative import relative_bias
from .relatives import no_biases as biases
from .sources import Source, place
from .spec import Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "mpnet."
_KEYS = words(
    """
    hidden_act hidden_size intermediate_size is_decoder layer_norm_eps max_position_embeddings num_attention_heads
    num_hidden_layers relative_attention_num_buckets tie_word_embeddings vocab_size
    """
)
_BUCKETS, _DISTANCE = 32, 128
_OFFSET = 2
_ENDS = {**ENDS, "relative_bias": "encoder.relative_attention_bias"}
_INSIDE = {
    **INSIDE,
    **{name: f"attention.attn.{name}" for name in "qkvo"},
    "attn_after_sum": "attention.LayerNorm",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    if (buckets := integer(config, "relative_attention_num_buckets", _BUCKETS)) != _BUCKETS:
        raise GossamerError(f"relative_attention_num_buckets {buckets} is not supported: it is {_BUCKETS} in MPNet")
    return encoder(config, offset=_OFFSET, positions=relative_bias(_BUCKETS, _DISTANCE, causal=False))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    found = place(describe(config), behind(PREFIX, _ENDS), f"{PREFIX}encoder.layer.{{}}.", _INSIDE)
    return found | {"relative_bias": found["relative_bias"].inputs_first()}
