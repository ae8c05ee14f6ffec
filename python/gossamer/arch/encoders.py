"""What BERT and its relatives read alike; what is their own stands in the family's module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import GossamerError
from .fields import activation, flag, integer, number, quotient
from .spec import (
    MOST_LAYERS,
    Attention,
    Block,
    Branch,
    Embedding,
    Learned,
    Mlp,
    Norm,
    RelativeBias,
    Stack,
    Transformer,
    attention_scale,
)

ENDS = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
}
"""Stored names of what is outside the blocks, behind the family's prefix."""
INSIDE = {
    **{name: f"attention.self.{stored}" for name, stored in (("q", "query"), ("k", "key"), ("v", "value"))},
    "o": "attention.output.dense",
    "attn_after_sum": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_after_sum": "output.LayerNorm",
}
"""Stored names of what is in a block."""


@dataclass(frozen=True)
class Names:
    """What a family's config calls sizes.

    Attributes:
        hidden: Width of the stream.
        layers: Number of blocks.
        heads: Of an attention.
        width: Of an MLP.
        activation: Of an MLP.
    """

    hidden: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    width: str = "intermediate_size"
    activation: str = "hidden_act"


def behind(prefix: str, ends: Mapping[str, str]) -> dict[str, str]:
    """Returns stored names with a prefix."""
    return {name: prefix + stored for name, stored in ends.items()}


def pad(config: dict[str, Any], default: int) -> int:
    """Returns the number of the padding token, behind which positions begin.

    Raises:
        GossamerError: it is no token.
    """
    value = config.get("pad_token_id", default)
    if type(value) is not int or not 0 <= value < integer(config, "vocab_size"):
        raise GossamerError(f"pad_token_id must be a token, got {value!r:.80}")
    return value


def encoder(
    config: dict[str, Any],
    *,
    offset: int = 0,
    types: int = 0,
    positions: RelativeBias | None = None,
    eps: float | None = None,
    names: Names = Names(),
) -> Transformer:
    """Reads an encoder with norms behind its sums, biases everywhere and learned positions.

    Args:
        config: Content of config.json.
        offset: Rows of the table of positions before that of the first one.
        types: Token types.
        positions: What attention adds by distance.
        eps: Of its norms; None reads layer_norm_eps.
        names: What the config calls sizes.

    Raises:
        GossamerError: a key is missing or unsupported.
    """
    for key in ("is_decoder", "add_cross_attention"):
        if flag(config, key):
            raise GossamerError(f"{key} is not supported")
    kind = config.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise GossamerError(f"position_embedding_type {kind!r:.80} is not supported")
    hidden, heads = integer(config, names.hidden), integer(config, names.heads)
    dim = quotient(names.hidden, hidden, names.heads, heads)
    norm = Norm("layer", number(config, "layer_norm_eps", 1e-12) if eps is None else eps, bias=True)
    attention = Attention(heads, heads, dim, attention_scale(dim), positions, ("q", "k", "v", "o"), causal=False)
    act = activation(config, names.activation, "gelu")
    mlp = Mlp(integer(config, names.width), act, gated=False, biases=("up", "down"))
    block = Block(tuple(Branch(mixer, None, after_sum=norm) for mixer in (attention, mlp)))
    count = integer(config, "max_position_embeddings")
    if count <= offset:
        raise GossamerError(f"max_position_embeddings {count} leaves no position behind the padding token's")
    stack = Stack((block,), (0,) * integer(config, names.layers, most=MOST_LAYERS), None)
    embedding = Embedding(Learned(count, offset), norm=norm, types=types)
    return Transformer(hidden, integer(config, "vocab_size"), count - offset, embedding, stack, None)
