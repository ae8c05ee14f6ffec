"""Qwen 2 with experts: Llama with biases of q, k and v, and experts beside a shared one in place of most MLPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import llama
from .experts import counts, expert_sources, with_experts
from .fields import FULL, SLIDING, flag, integer, words
from .llama import PREFIX
from .olmoe import count_key, place
from .qwen3_moe import KEYS, sparse_layers
from .sources import Source, parts_of
from .spec import MOST_LAYERS, Attention, Experts, Mlp, Routing, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = KEYS | words("qkv_bias shared_expert_intermediate_size")
_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 16,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
_BIASES = ("q", "k", "v")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same with MLPs, as Llama's."""
    plain = {key: value for key, value in (_DEFAULTS | config).items() if key not in _KEYS}
    if plain.get("layer_types") is None and flag(plain, "use_sliding_window"):  # every other of the first layers
        first = integer(config, "max_window_layers", 28)
        layers = range(integer(config, "num_hidden_layers", most=MOST_LAYERS))
        plain["layer_types"] = [SLIDING if layer % 2 == 0 and layer < first else FULL for layer in layers]
    return plain


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    with_bias = _BIASES if flag(config, "qkv_bias", True) else ()
    return lambda _, attention: replace(attention, biases=with_bias)


_KIN = llama.Kin(_plain, _attention)
unread = _KIN.unread


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    return with_experts(_KIN.describe(config), _experts(config), sparse_layers(config))


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    every = llama.biases(_plain(config))["attention_bias"]
    return {"qkv_bias": {name: source for name, source in every.items() if parts_of(name)[1] in _BIASES}}


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    hidden, layers = integer(config, "hidden_size"), sparse_layers(config)
    return expert_sources(_KIN.sources(config), _experts(config), hidden, place, layers)


def _experts(config: dict[str, Any]) -> Experts:
    count, chosen = counts(config, count_key(config), "num_experts_per_tok", (60, 4))
    expert = Mlp(integer(config, "moe_intermediate_size", 1408), "silu")
    shared = Mlp(integer(config, "shared_expert_intermediate_size", 5632), "silu")
    routing = Routing("all", normalized=flag(config, "norm_topk_prob"))
    return Experts(count, chosen, expert, routing, shared, shared_gate=True)
