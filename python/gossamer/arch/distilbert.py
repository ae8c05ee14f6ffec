"""DistilBERT: BERT without token types, under names of its own."""

from __future__ import annotations

from typing import Any

from . import keys
from .encoders import ENDS, Names, behind, encoder
from .fields import words
from .relatives import no_biases as biases
from .sources import Source, place
from .spec import Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "distilbert."
_KEYS = words(
    """
    activation dim dropout hidden_dim max_position_embeddings n_heads n_layers qa_dropout seq_classif_dropout
    sinusoidal_pos_embds tie_weights_ tie_word_embeddings vocab_size
    """
)
_NAMES = Names(hidden="dim", layers="n_layers", heads="n_heads", width="hidden_dim", activation="activation")
_INSIDE = {
    **{name: f"attention.{name}_lin" for name in "qkv"},
    "o": "attention.out_lin",
    "attn_after_sum": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "mlp_after_sum": "output_layer_norm",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    return encoder(config, eps=1e-12, names=_NAMES)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)  # positions that are sines are stored all the same


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(describe(config), behind(PREFIX, ENDS), f"{PREFIX}transformer.layer.{{}}.", _INSIDE)
