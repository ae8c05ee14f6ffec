"""BLOOM: layer norms, one behind the embedding too, positions by ALiBi, q, k and v of each head in one matrix."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import alibi, keys
from .fields import flag, integer, number, quotient, words
from .relatives import QKVO
from .relatives import no_biases as biases
from .sources import Source, place
from .spec import (
    MOST_LAYERS,
    Alibi,
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Mlp,
    Norm,
    Stack,
    Transformer,
    attention_scale,
)

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "transformer."
# Those of the second line are of how the first program that ran them did it.
_KEYS = words(
    """
    hidden_size layer_norm_epsilon n_head n_layer seq_length tie_word_embeddings vocab_size
    attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add skip_bias_add_qkv
    slow_but_exact
    """
)
_NAMES = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
_ENDS = {
    "embed": "transformer.word_embeddings",
    "embed_norm": "transformer.word_embeddings_layernorm",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    **dict.fromkeys("qkv", "self_attention.query_key_value"),
    "o": "self_attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = keys.plainly(config, _NAMES)
    hidden, heads, layers = (integer(config, key) for key in ("hidden_size", "n_head", "n_layer"))
    dim = quotient("hidden_size", hidden, "n_head", heads)
    if layers > MOST_LAYERS:
        raise GossamerError(f"n_layer must be from 1 to {MOST_LAYERS}, got {layers}")
    norm = Norm("layer", number(config, "layer_norm_epsilon", 1e-5), bias=True)
    attention = Attention(heads, heads, dim, attention_scale(dim), Alibi(alibi.bloom(heads)), QKVO)
    mlp = Mlp(4 * hidden, "gelu_tanh", gated=False, biases=("up", "down"))
    stack = Stack((Block((Branch(attention, norm), Branch(mlp, norm))),), (0,) * layers, norm)
    context = integer(config, "seq_length", 2048)
    head = Head(flag(config, "tie_word_embeddings", True))
    return Transformer(hidden, integer(config, "vocab_size"), context, Embedding(norm=norm), stack, head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    if flag(config, "slow_but_exact") and config.get("pretraining_tp", 1) != 1:
        raise GossamerError(
            "slow_but_exact true is not supported with a pretraining_tp: transformers leaves out biases"
        )
    return keys.unread(keys.plainly(config, _NAMES), _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = describe(config)
    attention = outline.blocks[0].branches[0].mixer
    assert isinstance(attention, Attention)
    dim = attention.head_dim
    rows = {name: (at * dim, dim, 3 * dim) for at, name in enumerate(("q", "k", "v"))}
    return place(outline, _ENDS, "transformer.h.{}.", _INSIDE, fused=rows)
