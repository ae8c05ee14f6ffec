"""GPT-NeoX (Pythia): layer norms, attention and MLP side by side, rotary positions in a part of each head."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import keys
from .fields import activation, flag, integer, number, quotient, words
from .relatives import QKVO
from .relatives import no_biases as biases
from .rope import partial_rotary
from .sources import Source, place
from .spec import (
    MOST_LAYERS,
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Mlp,
    Norm,
    Rope,
    Stack,
    Transformer,
    attention_scale,
)

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "gpt_neox."

_KEYS = words(
    """
    attention_bias hidden_act hidden_size intermediate_size layer_norm_eps max_position_embeddings num_attention_heads
    num_hidden_layers original_max_position_embeddings partial_rotary_factor rope_parameters rope_scaling rope_theta
    rotary_emb_base rotary_pct tie_word_embeddings use_parallel_residual vocab_size
    """
)
_ENDS = {"embed": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "head": "embed_out"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    **dict.fromkeys("qkv", "attention.query_key_value"),
    "o": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    turned = partial_rotary(_turned(config), _head_dim(config), 0.25)
    return _outline(config, Rope(turned.inv_freq, turned.scale), turned.context)


def _turned(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what it says of rotation under the names of others, which transformers does not read here."""
    inside = config.get("rope_scaling") or config.get("rope_parameters") or {}
    found = dict(config)
    names = {"rope_theta": ("rotary_emb_base", 10000.0), "partial_rotary_factor": ("rotary_pct", 0.25)}
    for key, (own, default) in names.items():
        found[key] = default if config.get(own) is None else config[own]
        if config.get(key) not in (None, found[key]) and isinstance(inside, dict) and key not in inside:
            raise GossamerError(f"{key} {config[key]!r:.80} contradicts {own} {found[key]!r:.80}")
    return found


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    hidden, heads, dim = integer(config, "hidden_size"), integer(config, "num_attention_heads"), _head_dim(config)
    norm = Norm("layer", number(config, "layer_norm_eps", 1e-5), bias=True)
    with_bias = flag(config, "attention_bias", True)
    attention = Attention(heads, heads, dim, attention_scale(dim), positions, QKVO if with_bias else ())
    width = integer(config, "intermediate_size")
    mlp = Mlp(width, activation(config, "hidden_act", "gelu"), gated=False, biases=("up", "down"))
    parallel = flag(config, "use_parallel_residual", True)
    block = Block((Branch(attention, norm), Branch(mlp, norm)), parallel)
    stack = Stack((block,), (0,) * integer(config, "num_hidden_layers", most=MOST_LAYERS), norm)
    head = Head(flag(config, "tie_word_embeddings"))
    return Transformer(hidden, integer(config, "vocab_size"), context, Embedding(), stack, head)


def _head_dim(config: dict[str, Any]) -> int:
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    return quotient("hidden_size", hidden, "num_attention_heads", heads)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    dim = _head_dim(config)
    rows = {name: (at * dim, dim, 3 * dim) for at, name in enumerate("qkv")}  # of each head
    return place(_outline(config, None, 1), _ENDS, "gpt_neox.layers.{}.", _INSIDE, fused=rows)
