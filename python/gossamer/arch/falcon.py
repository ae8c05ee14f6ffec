"""Falcon: attention and MLP side by side; queries, keys and values in one matrix, by heads that share keys."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import keys, relatives
from .fields import activation, flag, integer, number, quotient, words
from .relatives import QKVO
from .relatives import no_biases as biases
from .rope import rotary
from .sources import Source, place
from .spec import Attention, Block, Branch, Mlp, Norm, Rope, Transformer, attention_scale

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "transformer."
_KEYS = words(
    """
    activation alibi bias ffn_hidden_size hidden_size layer_norm_epsilon max_position_embeddings multi_query n_embed
    new_decoder_architecture num_attention_heads num_hidden_layers num_kv_heads num_ln_in_parallel_attn
    original_max_position_embeddings parallel_attn rope_parameters rope_scaling rope_theta rotary tie_word_embeddings
    vocab_size
    """
)
_ENDS = {"embed": "transformer.word_embeddings", "norm": "transformer.ln_f", "head": "lm_head"}
_INSIDE = {
    **dict.fromkeys("qkv", "self_attention.query_key_value"),
    "o": "self_attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what it may leave out."""
    hidden = config.get("hidden_size") if config.get("n_embed") is None else config["n_embed"]
    return {"max_position_embeddings": 2048, "tie_word_embeddings": True, **config, "hidden_size": hidden}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = _plain(config)
    turned = rotary(config, relatives.head_dim(config))
    return _outline(config, relatives.rope(turned), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    config = _plain(config)
    heads, dim, grouped = integer(config, "num_attention_heads"), relatives.head_dim(config), _grouped(config)
    shared = 1 if flag(config, "multi_query", True) else heads
    kv_heads = integer(config, "num_kv_heads", heads) if grouped else shared
    quotient("num_attention_heads", heads, "num_kv_heads", kv_heads)
    with_bias = flag(config, "bias")
    norm = Norm("layer", number(config, "layer_norm_epsilon", 1e-5), bias=True)
    attention = Attention(heads, kv_heads, dim, attention_scale(dim), positions, QKVO if with_bias else ())
    width = integer(config, "ffn_hidden_size", 4 * integer(config, "hidden_size"))
    act = activation(config, "activation", "gelu")
    mlp = Mlp(width, act, gated=False, biases=("up", "down") if with_bias else ())
    own = norm if _norms(config) == 2 else None
    branches = (Branch(attention, own), Branch(mlp, own))
    parallel = grouped or flag(config, "parallel_attn", True)
    block = Block(branches, parallel, None if own else norm)
    return relatives.decoder(config, (block,), norm, context)


def _grouped(config: dict[str, Any]) -> bool:
    return flag(config, "new_decoder_architecture")


def _norms(config: dict[str, Any]) -> int:
    """How many norms there are before the mixers."""
    if not (_grouped(config) or flag(config, "parallel_attn", True)):
        return 2
    return integer(config, "num_ln_in_parallel_attn", 2 if _grouped(config) else 1, 2) if _grouped(config) else 1


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    if flag(config, "alibi"):
        raise GossamerError("alibi true is not supported")  # its distances are rounded to bf16
    if _grouped(config) and not flag(config, "parallel_attn", True):
        raise GossamerError("parallel_attn false with new_decoder_architecture is not supported")
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = _outline(config, None, 1)
    block = outline.blocks[0]
    attention = block.branches[0].mixer
    assert isinstance(attention, Attention)
    dim, each = attention.head_dim, attention.heads // attention.kv_heads * attention.head_dim
    rows = {"q": (0, each, each + 2 * dim), "k": (each, dim, each + 2 * dim), "v": (each + dim, dim, each + 2 * dim)}
    norms = {"norm": "input_layernorm"}
    if not block.parallel:
        norms = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    elif block.norm is None:
        norms = {"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"}
    return place(outline, _ENDS, "transformer.h.{}.", _INSIDE | norms, fused=rows)
