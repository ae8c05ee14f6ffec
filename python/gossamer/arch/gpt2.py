"""GPT-2: layer norms, learned positions, a plain MLP, and linears that are stored with inputs first."""

from __future__ import annotations

from typing import Any

from . import keys
from .fields import activation, flag, integer, number, quotient, words
from .relatives import QKVO
from .relatives import no_biases as biases
from .sources import Source, parts_of, place
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

PREFIX = "transformer."

_KEYS = words(
    """
    activation_function layer_norm_epsilon n_ctx n_embd n_head n_inner n_layer n_positions reorder_and_upcast_attn
    tie_word_embeddings vocab_size
    """
)
_ENDS = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
_INSIDE = {
    "attn_norm": "ln_1",
    **dict.fromkeys("qkv", "attn.c_attn"),
    "o": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    hidden, heads = integer(config, "n_embd"), integer(config, "n_head")
    dim = quotient("n_embd", hidden, "n_head", heads)
    unread(config)
    norm = Norm("layer", number(config, "layer_norm_epsilon", 1e-5), bias=True)
    attention = Attention(heads, heads, dim, attention_scale(dim), None, QKVO)
    width = integer(config, "n_inner", 4 * hidden)
    mlp = Mlp(width, activation(config, "activation_function", "gelu_new"), gated=False, biases=("up", "down"))
    block = Block((Branch(attention, norm), Branch(mlp, norm)))
    stack = Stack((block,), (0,) * integer(config, "n_layer", most=MOST_LAYERS), norm)
    context = integer(config, "n_positions", 1024)
    embedding = Embedding(Learned(context))
    head = Head(flag(config, "tie_word_embeddings", True))
    return Transformer(hidden, integer(config, "vocab_size"), context, embedding, stack, head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    # Summaries are what other heads than this one have.
    return keys.unread({key: value for key, value in config.items() if not key.startswith("summary_")}, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = describe(config)
    rows = {name: (at * outline.hidden, outline.hidden, 3 * outline.hidden) for at, name in enumerate("qkv")}
    found = place(outline, _ENDS, "transformer.h.{}.", _INSIDE, fused=rows)
    return {name: source.inputs_first() if parts_of(name)[0] else source for name, source in found.items()}
