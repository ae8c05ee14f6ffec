"""GPT-NeoX (Pythia): layer norms, attention and MLP side by side, rotary positions in a part of each head."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import GossamerError
from . import keys
from .fields import flag, integer, number, words
from .rope import rotary
from .sources import Source, parts_of
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

PREFIX = "gpt_neox."

_KEYS = words(
    """
    attention_bias hidden_act hidden_size intermediate_size layer_norm_eps max_position_embeddings num_attention_heads
    num_hidden_layers original_max_position_embeddings partial_rotary_factor rope_parameters rope_scaling rope_theta
    rotary_emb_base rotary_pct tie_word_embeddings use_parallel_residual vocab_size
    """
)
_ACTIVATIONS: dict[Any, Literal["gelu", "gelu_tanh"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_STORED = {
    "embed": "gpt_neox.embed_in",
    "attn_norm": "input_layernorm",
    "o": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}
_FUSED = ("q", "k", "v")


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    partial = _partial(config)
    dims = int(_head_dim(config) * partial)
    if dims % 2:
        raise GossamerError(f"the part of a head that is rotated must be even, got {dims}")
    theta = config.get("rotary_emb_base")
    rotated = rotary(config if theta is None else {"rope_theta": theta, **config}, dims, partial)
    return _outline(config, Rope(rotated.inv_freq, rotated.scale), rotated.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    hidden, heads, dim = integer(config, "hidden_size"), integer(config, "num_attention_heads"), _head_dim(config)
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise GossamerError(f"hidden_act {activation!r:.80} is not supported; there are: {', '.join(_ACTIVATIONS)}")
    norm = Norm("layer", number(config, "layer_norm_eps", 1e-5), bias=True)
    with_bias = flag(config, "attention_bias", True)
    attention = Attention(heads, heads, dim, attention_scale(dim), positions, ("q", "k", "v", "o") if with_bias else ())
    mlp = Mlp(integer(config, "intermediate_size"), _ACTIVATIONS[activation], gated=False, biases=("up", "down"))
    parallel = flag(config, "use_parallel_residual", True)
    block = Block((Branch(attention, norm), Branch(mlp, norm)), parallel)
    stack = Stack((block,), (0,) * integer(config, "num_hidden_layers", most=MOST_LAYERS), norm)
    head = Head(flag(config, "tie_word_embeddings"))
    return Transformer(hidden, integer(config, "vocab_size"), context, Embedding(), stack, head)


def _head_dim(config: dict[str, Any]) -> int:
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    if hidden % heads:
        raise GossamerError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return hidden // heads


def _partial(config: dict[str, Any]) -> float:
    """The share of a head that is rotated, wherever it stands."""
    for holder, key in (
        (config.get("rope_parameters"), "partial_rotary_factor"),
        (config.get("rope_scaling"), "partial_rotary_factor"),
        (config, "partial_rotary_factor"),
        (config, "rotary_pct"),
    ):
        if isinstance(holder, dict) and holder.get(key) is not None:
            share = number(holder, key)
            if share > 1:
                raise GossamerError(f"{key} must be at most 1, got {share}")
            return share
    return 0.25


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:  # noqa: ARG001
    """Lists the biases that there may be; see `gossamer.arch.Family`. The config says of all that they are there."""
    return {}


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline, dim = _outline(config, None, 1), _head_dim(config)
    found = {}
    for name, shape in outline.tensors.items():
        layer, own, kind = parts_of(name)
        if not layer:
            found[name] = Source(f"{_STORED[own]}.{kind}", shape)
            continue
        prefix = f"gpt_neox.layers.{layer}."
        if own in _FUSED:  # of each head the rows of q, those of k and those of v
            rows = (_FUSED.index(own) * dim, dim, 3 * dim)
            stored = (3 * outline.hidden, *shape[1:])
            found[name] = Source(f"{prefix}attention.query_key_value.{kind}", stored, rows=rows)
        else:
            found[name] = Source(f"{prefix}{_STORED[own]}.{kind}", shape)
    return found
