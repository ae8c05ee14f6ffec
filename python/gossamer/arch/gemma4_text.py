"""Gemma 4, text alone: Gemma 3 with heads wider in layers without a window, whose values may be their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from ..errors import GossamerError
from . import keys, relatives
from .fields import FULL, SLIDING, flag, integer, layer_types, number, single, words
from .relatives import BLOCKS, ENDS, INSIDE, QK_NORMS, QKVO
from .relatives import no_biases as biases
from .rope import Rotary, of_kind, rotary
from .sources import Source, place
from .spec import Attention, Block, Branch, Embedding, Head, Norm, QkNorm, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    attention_bias attention_k_eq_v enable_moe_block final_logit_softcapping global_head_dim head_dim
    hidden_activation hidden_size hidden_size_per_layer_input intermediate_size layer_types max_position_embeddings
    moe_intermediate_size num_attention_heads num_experts num_global_key_value_heads num_hidden_layers
    num_key_value_heads num_kv_shared_layers per_layer_config rms_norm_eps rope_parameters sliding_window
    tie_word_embeddings top_k_experts use_bidirectional_attention use_double_wide_mlp vocab_size
    vocab_size_per_layer_input
    """
)
_DEFAULTS: dict[str, Any] = {
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 4,
    "num_kv_shared_layers": 0,
    "sliding_window": 512,
    "tie_word_embeddings": True,
}
_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
_INSIDE = INSIDE | QK_NORMS
_INSIDE |= {
    "attn_behind": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_behind": "post_feedforward_layernorm",
    "scalar": "layer_scalar",
}
_OWN = ("head_dim", "num_key_value_heads")
"""What a layer may have of its own."""


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    full = _full(config)
    turned: dict[tuple[bool, int], Rotary] = {}
    for attention in _attentions(full, None):
        slides = attention.window is not None
        if (slides, attention.head_dim) not in turned:
            turned[slides, attention.head_dim] = rotary(of_kind(full, SLIDING if slides else FULL), attention.head_dim)
    return replace(_outline(full, turned), context=min(one.context for one in turned.values()))


def _full(config: dict[str, Any]) -> dict[str, Any]:
    full = {**_DEFAULTS, **{key: value for key, value in config.items() if value is not None or key not in _DEFAULTS}}
    if full.get("rope_parameters") is None:
        full["rope_parameters"] = _ROPES
    for key in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if full[key] != 0:
            raise GossamerError(f"{key} is not supported, got {full[key]!r:.80}")
    if flag(full, "enable_moe_block"):
        raise GossamerError("enable_moe_block is not supported: experts beside an MLP")
    if full.get("use_bidirectional_attention") not in (None, "vision"):  # which is of pictures, and here is text alone
        raise GossamerError(f"use_bidirectional_attention {full['use_bidirectional_attention']!r:.80} is not supported")
    return full


def _slides(full: dict[str, Any]) -> list[bool]:
    """Whether each layer has a window; the last one never has."""
    layers = relatives.layers(full)
    return [*layer_types(full, layers, lambda layer: (layer + 1) % 6 != 0)[:-1], False]


def _own(full: dict[str, Any], slides: Sequence[bool]) -> list[dict[str, Any]]:
    """The config as each layer has it."""
    given = full.get("per_layer_config")
    if given is None:
        wide: dict[str, Any] = {"head_dim": integer(full, "global_head_dim", 512)}
        if flag(full, "attention_k_eq_v") and full.get("num_global_key_value_heads") is not None:
            wide["num_key_value_heads"] = integer(full, "num_global_key_value_heads")
        return [full if slide else full | wide for slide in slides]
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise GossamerError(f"per_layer_config must be an object of objects, got {given!r:.80}")
    found = [full] * len(slides)
    for name, changed in given.items():
        if name not in map(str, range(len(slides))):
            raise GossamerError(f"per_layer_config: {name!r:.80} is no layer of {len(slides)}")
        if unknown := sorted(set(changed) - set(_OWN), key=str):
            raise GossamerError(f"per_layer_config: {name}: {unknown[0]!s:.80} is not supported")
        found[int(name)] = full | changed
    return found


def _attentions(full: dict[str, Any], turned: dict[tuple[bool, int], Rotary] | None) -> list[Attention]:
    norm = Norm("rms", relatives.epsilon(full))
    with_bias = QKVO if flag(full, "attention_bias") else ()
    found = []
    slides = _slides(full)
    for slide, own in zip(slides, _own(full, slides), strict=True):
        dim = integer(own, "head_dim")
        positions = relatives.rope(turned[slide, dim]) if turned else None
        same = flag(full, "attention_k_eq_v") and not slide
        one = relatives.attention(own, dim, positions, [name for name in with_bias if name != "v" or not same], 1.0)
        window = integer(full, "sliding_window") if slide else None
        values: Literal["own", "keys"] = "keys" if same else "own"
        bare = replace(norm, weight=False)
        found.append(replace(one, window=window, qk_norm=QkNorm(norm), values=values, v_norm=bare))
    return found


def _outline(full: dict[str, Any], turned: dict[tuple[bool, int], Rotary] | None) -> Transformer:
    norm = Norm("rms", relatives.epsilon(full))
    mlp = relatives.mlp(full, key="hidden_activation", act="gelu_pytorch_tanh")
    kinds, which = relatives.by_layer(
        [Block((Branch(one, norm, norm), Branch(mlp, norm, norm)), scalar=True) for one in _attentions(full, turned)]
    )
    cap = None if full["final_logit_softcapping"] is None else number(full, "final_logit_softcapping")
    head = Head(flag(full, "tie_word_embeddings"), softcap=cap)
    scale = single(integer(full, "hidden_size") ** 0.5)
    return relatives.decoder(full, kinds, norm, 1, which=which, embedding=Embedding(scale=scale), head=head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    found = place(_outline(_full(config), None), ENDS, BLOCKS, _INSIDE)
    return {
        name: replace(source, tensor=source.tensor.removesuffix(".weight")) if name.endswith(".scalar") else source
        for name, source in found.items()
    }
