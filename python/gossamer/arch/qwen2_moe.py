"""Qwen 2 with experts: Llama with biases of q, k and v, and experts beside a shared one in place of most MLPs."""

from __future__ import annotations

from typing import Any

from . import llama
from .experts import counts, expert_sources, with_attention, with_experts
from .fields import FULL, SLIDING, flag, integer, words
from .llama import PREFIX
from .olmoe import count_key, place
from .qwen3_moe import KEYS, sparse_layers
from .sources import Source
from .spec import MOST_LAYERS, Experts, Mlp, Routing, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = KEYS | words("qkv_bias shared_expert_intermediate_size")
_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 16,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
_BIASES = ("q", "k", "v")


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    dense = with_attention(llama.describe(_dense(config)), biases=_BIASES if flag(config, "qkv_bias", True) else ())
    return with_experts(dense, _experts(config), sparse_layers(config))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return llama.unread(_dense(config))


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    return {"qkv_bias": _bias_sources(config)}


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    hidden, layers = integer(config, "hidden_size"), sparse_layers(config)
    found = expert_sources(llama.sources(_dense(config)), _experts(config), hidden, place, layers)
    return found | _bias_sources(config) if flag(config, "qkv_bias", True) else found


def _bias_sources(config: dict[str, Any]) -> dict[str, Source]:
    every = llama.biases(_dense(config))["attention_bias"]
    return {name: source for name, source in every.items() if name.split(".")[2] in _BIASES}


def _dense(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same with MLPs."""
    dense = {key: value for key, value in (_DEFAULTS | config).items() if key not in _KEYS}
    if dense.get("layer_types") is None and flag(dense, "use_sliding_window"):  # every other of the first layers
        first = integer(config, "max_window_layers", 28)
        layers = range(integer(config, "num_hidden_layers", most=MOST_LAYERS))
        dense["layer_types"] = [SLIDING if layer % 2 == 0 and layer < first else FULL for layer in layers]
    return dense


def _experts(config: dict[str, Any]) -> Experts:
    count, chosen = counts(config, count_key(config), "num_experts_per_tok", (60, 4))
    expert = Mlp(integer(config, "moe_intermediate_size", 1408), "silu")
    shared = Mlp(integer(config, "shared_expert_intermediate_size", 5632), "silu")
    routing = Routing("all", normalized=flag(config, "norm_topk_prob"))
    return Experts(count, chosen, expert, routing, shared, shared_gate=True)
