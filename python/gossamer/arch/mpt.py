"""MPT: layer norms without biases, positions by ALiBi, one stored matrix for q, k and v, which may be clipped."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import alibi, keys
from .fields import flag, integer, number, quotient, single, words
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

_WHERE = "attn_config"
# Learned positions are what models without ALiBi have, no_bias is checked below, and the rest is of training.
_KEYS = words(
    """
    attn_config d_model emb_pdrop embedding_fraction expansion_ratio init_config init_device layer_norm_epsilon
    learned_pos_emb max_seq_len n_heads n_layers no_bias norm_type tie_word_embeddings verbose vocab_size
    """
)
_ATTENTION_KEYS = words("alibi alibi_bias_max attn_impl attn_pdrop attn_type clip_qkv model_type softmax_scale")
_BIAS = 8.0
_ENDS = {"embed": "transformer.wte", "norm": "transformer.norm_f", "head": "lm_head"}
_INSIDE = {
    "attn_norm": "norm_1",
    **dict.fromkeys(("q", "k", "v"), "attn.Wqkv"),
    "o": "attn.out_proj",
    "mlp_norm": "norm_2",
    "up": "ffn.up_proj",
    "down": "ffn.down_proj",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    given = _attention(config)
    hidden, heads = integer(config, "d_model", 2048), integer(config, "n_heads", 16)
    dim = quotient("d_model", hidden, "n_heads", heads)
    scale = given.get("softmax_scale")
    attention = Attention(
        heads,
        heads,
        dim,
        attention_scale(dim) if scale is None else single(number(given, "softmax_scale", None, _WHERE)),
        Alibi(alibi.mpt(heads, _BIAS)),
        clip=single(number(given, "clip_qkv", None, _WHERE)) if given.get("clip_qkv") else None,
    )
    norm = Norm("layer", number(config, "layer_norm_epsilon", 1e-5))
    mlp = Mlp(integer(config, "expansion_ratio", 4) * hidden, "gelu", gated=False)
    stack = Stack(
        (Block((Branch(attention, norm), Branch(mlp, norm))),),
        (0,) * integer(config, "n_layers", 24, MOST_LAYERS),
        norm,
    )
    head = Head(flag(config, "tie_word_embeddings", True))
    vocab, context = integer(config, "vocab_size", 50368), integer(config, "max_seq_len", 2048)
    return Transformer(hidden, vocab, context, Embedding(), stack, head)


def _attention(config: dict[str, Any]) -> dict[str, Any]:
    """What the config says of attention, checked."""
    given = config.get(_WHERE) or {}
    if not isinstance(given, dict):
        raise GossamerError(f"{_WHERE} must be an object, got {given!r:.80}")
    keys.unread(given, _ATTENTION_KEYS, _WHERE)
    if given.get("attn_type", "multihead_attention") != "multihead_attention":
        raise GossamerError(f"{_WHERE}: attn_type {given['attn_type']!r:.80} is not supported")
    if not flag(given, "alibi", True):
        raise GossamerError(f"{_WHERE}: alibi false is not supported")
    if (most := number(given, "alibi_bias_max", _BIAS, _WHERE)) != _BIAS:
        raise GossamerError(f"{_WHERE}: alibi_bias_max {most} is not supported: transformers takes {_BIAS} for any")
    return given


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    if not flag(config, "no_bias", True):
        raise GossamerError("no_bias false is not supported")
    kind = config.get("norm_type", "low_precision_layernorm")
    if kind not in ("layernorm", "low_precision_layernorm"):
        raise GossamerError(f"norm_type {kind!r:.80} is not supported; there are: layernorm, low_precision_layernorm")
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = describe(config)
    rows = {name: (at * outline.hidden, outline.hidden, 3 * outline.hidden) for at, name in enumerate(("q", "k", "v"))}
    return place(outline, _ENDS, "transformer.blocks.{}.", _INSIDE, fused=rows)
