"""StableLM: Llama with layer norms and rotary positions in a part of each head; heads may have norms of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import keys, relatives
from .fields import flag, words
from .relatives import BLOCKS, ENDS, INSIDE
from .relatives import no_biases as biases
from .rope import partial_rotary
from .sources import Source, place
from .spec import Attention, Block, Branch, Norm, QkNorm, Rope, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    hidden_act hidden_size intermediate_size layer_norm_eps max_position_embeddings norm_eps num_attention_heads
    num_hidden_layers num_heads num_key_value_heads original_max_position_embeddings partial_rotary_factor qk_layernorm
    rope_parameters rope_pct rope_scaling rope_theta rotary_scaling_factor tie_word_embeddings use_parallel_residual
    use_qkv_bias vocab_size
    """
)
_DEFAULTS = {"max_position_embeddings": 4096}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    full = {**_DEFAULTS, **config}
    turned = partial_rotary(full, relatives.head_dim(full), 0.25)
    return _outline(config, relatives.rope(turned), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    config = {**_DEFAULTS, **config}
    eps = relatives.epsilon(config, "layer_norm_eps", 1e-5)
    norm, parallel = Norm("layer", eps, bias=True), flag(config, "use_parallel_residual")
    with_bias = ("q", "k", "v") if flag(config, "use_qkv_bias") else ()
    attention = relatives.attention(config, relatives.head_dim(config), positions, with_bias)
    if flag(config, "qk_layernorm"):
        attention = replace(attention, qk_norm=QkNorm(Norm("layer", eps), own=True))
    own = None if parallel else norm
    block = Block((Branch(attention, own), Branch(relatives.mlp(config), own)), parallel, norm if parallel else None)
    return relatives.decoder(config, (block,), norm, context)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = _outline(config, None, 1)
    attention = outline.blocks[0].branches[0].mixer
    assert isinstance(attention, Attention)
    heads = {
        f"{side}_norm_{head}": f"self_attn.{side}_layernorm.norms.{head}"
        for side, count in (("q", attention.heads), ("k", attention.kv_heads))
        for head in range(count)
    }
    return place(outline, ENDS, BLOCKS, INSIDE | {"norm": "input_layernorm"} | heads)
