"""What decoders whose configs have Llama's keys read alike; what is their own stands in the family's module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from .fields import activation, flag, integer, layer_types, number, quotient
from .rope import Rotary
from .sources import Source
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

ENDS = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
"""Stored names of what is outside the blocks."""
BLOCKS = "model.layers.{}."
"""What stands before those of a block."""
INSIDE = {
    "attn_norm": "input_layernorm",
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    "mlp_norm": "post_attention_layernorm",
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""Stored names of what is in a block."""
QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
"""Stored names of norms of queries and keys, where a block has them."""
QKVO = ("q", "k", "v", "o")


def no_biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:  # noqa: ARG001
    """Lists the biases that there may be; see `gossamer.arch.Family`. The config says of all that they are there."""
    return {}


def head_dim(config: dict[str, Any]) -> int:
    """Returns the width of a head, which a config may leave to hidden_size and num_attention_heads."""
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    if config.get("head_dim") is not None:
        return integer(config, "head_dim")
    return quotient("hidden_size", hidden, "num_attention_heads", heads)


def attention(
    config: dict[str, Any], dim: int, positions: Rope | None, biases: Sequence[str] = (), scale: float | None = None
) -> Attention:
    """Reads attention with grouped queries.

    Args:
        config: Content of config.json.
        dim: Width of a head.
        positions: Its rotary positions.
        biases: Linears that have a bias.
        scale: Factor on products; None is 1 / sqrt(dim).
    """
    heads = integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    quotient("num_attention_heads", heads, "num_key_value_heads", kv_heads)
    return Attention(heads, kv_heads, dim, attention_scale(dim) if scale is None else scale, positions, tuple(biases))


def mlp(
    config: dict[str, Any],
    *,
    gated: bool = True,
    biases: Sequence[str] = (),
    key: str = "hidden_act",
    act: str = "silu",
) -> Mlp:
    """Reads an MLP.

    Args:
        config: Content of config.json.
        gated: Whether it has a gate.
        biases: Linears that have a bias.
        key: What the config calls its activation.
        act: The activation where the config does not say.
    """
    width = integer(config, "intermediate_size")
    return Mlp(width, activation(config, key, act), gated=gated, biases=tuple(biases))


def rope(rotated: Rotary | None, *, interleaved: bool = False) -> Rope | None:
    """Returns positions of a description; without them its shapes are the same."""
    return None if rotated is None else Rope(rotated.inv_freq, rotated.scale, interleaved)


def layers(config: dict[str, Any]) -> int:
    """Returns the number of blocks."""
    return integer(config, "num_hidden_layers", most=MOST_LAYERS)


def decoder(
    config: dict[str, Any],
    kinds: Sequence[Block],
    norm: Norm,
    context: int,
    *,
    which: Sequence[int] | None = None,
    embedding: Embedding | None = None,
    head: Head | None = None,
) -> Transformer:
    """Puts blocks together.

    Args:
        config: Content of config.json.
        kinds: The different blocks.
        norm: Behind the last one.
        context: Tokens that a sequence may hold.
        which: The kind of each layer; the first of all by default.
        embedding: The way in; a plain one by default.
        head: The way out; by default a plain one, tied where the config says so.
    """
    return Transformer(
        integer(config, "hidden_size"),
        integer(config, "vocab_size"),
        context,
        embedding or Embedding(),
        Stack(tuple(kinds), tuple(which or (0,) * layers(config)), norm),
        head or Head(flag(config, "tie_word_embeddings")),
    )


def epsilon(config: dict[str, Any], key: str = "rms_norm_eps", default: float = 1e-6) -> float:
    """Returns what norms add to the mean square."""
    return number(config, key, default)


def by_layer(blocks: Sequence[Block]) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """Returns the different ones of the blocks of all layers, and which of them each layer is."""
    kinds = tuple(dict.fromkeys(blocks))
    return kinds, tuple(map(kinds.index, blocks))


def each_attention(described: Transformer, change: Callable[[int, Attention], Attention]) -> Transformer:
    """Returns a description whose attentions are what becomes of them by their layers."""

    def changed(layer: int, branch: Branch) -> Branch:
        mixer = branch.mixer
        return replace(branch, mixer=change(layer, mixer)) if isinstance(mixer, Attention) else branch

    kinds, which = by_layer(
        [
            replace(block, branches=tuple(changed(layer, branch) for branch in block.branches))
            for layer, block in enumerate(described.blocks)
        ]
    )
    return replace(described, stack=replace(described.stack, kinds=kinds, layers=which))


def no_windows(config: dict[str, Any]) -> None:
    """Refuses windows, of families that have none whatever a config says.

    Raises:
        GossamerError: the config has one.
    """
    if config.get("sliding_window") is not None:
        raise GossamerError(f"sliding_window is not supported, got {config['sliding_window']!r:.80}")


def one_window(config: dict[str, Any]) -> None:
    """Refuses what contradicts `sliding_window`, of families whose every layer is as that says.

    Raises:
        GossamerError: `layer_types` or `use_sliding_window` does, which `transformers` does not read there.
    """
    windows, kinds = config.get("sliding_window") is not None, config.get("layer_types")
    if isinstance(kinds, list) and any((kind == "sliding_attention") != windows for kind in kinds):
        raise GossamerError(f"layer_types of {config.get('model_type')} must all be as sliding_window says")
    if windows and config.get("use_sliding_window") is False:
        raise GossamerError(f"use_sliding_window false contradicts sliding_window {config['sliding_window']!r:.80}")


def windows(config: dict[str, Any], default: Callable[[int], bool], window: int | None) -> list[int | None]:
    """Returns the sliding window of each layer.

    Args:
        config: Content of config.json.
        default: Whether a layer has one, by its number, where `layer_types` does not say.
        window: Positions that such a layer sees; None where the config has no windows.

    Raises:
        GossamerError: `layer_types` is no list of that, or asks for windows that there are not.
    """
    sliding = layer_types(config, layers(config), lambda layer: window is not None and default(layer))
    if window is None and any(sliding):
        raise GossamerError("layer_types asks for sliding_attention, but sliding_window is not in use")
    return [window if slides else None for slides in sliding]
