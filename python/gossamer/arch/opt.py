"""OPT: layer norms, learned positions that begin with the third row, a ReLU; the 350M model norms behind its sums."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import keys
from .fields import activation, flag, integer, quotient, words
from .relatives import QKVO
from .relatives import no_biases as biases
from .sources import Source, place
from .spec import (
    MOST_LAYERS,
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Learned,
    Mlp,
    Norm,
    Stack,
    Transformer,
    attention_scale,
)

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    _remove_final_layer_norm activation_function do_layer_norm_before enable_bias ffn_dim hidden_size init_std layerdrop
    layer_norm_elementwise_affine max_position_embeddings num_attention_heads num_hidden_layers tie_word_embeddings
    vocab_size word_embed_proj_dim
    """
)
_OFFSET = 2
_ENDS = {
    "embed": "model.decoder.embed_tokens",
    "embed_project": "model.decoder.project_in",
    "positions": "model.decoder.embed_positions",
    "norm": "model.decoder.final_layer_norm",
    "head_project": "model.decoder.project_out",
    "head": "lm_head",
}
_INSIDE = {
    **{name: f"self_attn.{name}_proj" for name in "qkv"},
    "o": "self_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
    **dict.fromkeys(("attn_norm", "attn_after_sum"), "self_attn_layer_norm"),
    **dict.fromkeys(("mlp_norm", "mlp_after_sum"), "final_layer_norm"),
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    hidden, heads = integer(config, "hidden_size", 768), integer(config, "num_attention_heads", 12)
    dim = quotient("hidden_size", hidden, "num_attention_heads", heads)
    if not flag(config, "layer_norm_elementwise_affine", True):
        raise GossamerError("layer_norm_elementwise_affine false is not supported")
    norm, first = Norm("layer", 1e-5, bias=True), flag(config, "do_layer_norm_before", True)
    with_bias = flag(config, "enable_bias", True)
    attention = Attention(heads, heads, dim, attention_scale(dim), None, QKVO if with_bias else ())
    act = activation(config, "activation_function", "relu")
    mlp = Mlp(integer(config, "ffn_dim", 3072), act, gated=False, biases=("up", "down") if with_bias else ())
    branches = tuple(
        Branch(mixer, norm if first else None, after_sum=None if first else norm) for mixer in (attention, mlp)
    )
    last = norm if first and not flag(config, "_remove_final_layer_norm") else None
    stack = Stack((Block(branches),), (0,) * integer(config, "num_hidden_layers", 12, MOST_LAYERS), last)
    context = integer(config, "max_position_embeddings", 2048)
    width = integer(config, "word_embed_proj_dim", hidden)
    project = None if width == hidden else width
    embedding = Embedding(Learned(context + _OFFSET, _OFFSET), project=project)
    head = Head(flag(config, "tie_word_embeddings", True), project=project)
    return Transformer(hidden, integer(config, "vocab_size", 50272), context, embedding, stack, head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(describe(config), _ENDS, "model.decoder.layers.{}.", _INSIDE)
