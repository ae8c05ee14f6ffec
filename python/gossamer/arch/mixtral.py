"""Mixtral: Llama with experts in place of the MLPs, each of which every token goes through two of."""

from __future__ import annotations

from typing import Any

from . import llama
from .experts import counts, expert_sources, with_experts
from .fields import integer, words
from .llama import PREFIX
from .relatives import one_window
from .sources import Source
from .spec import Experts, Mlp, Routing, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

# The last two are of training alone.
_KEYS = words("num_experts_per_tok num_local_experts output_router_logits router_jitter_noise")
_DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
_STORED = {"gate": "w1", "up": "w3", "down": "w2"}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    return with_experts(llama.describe(_dense(config)), _experts(config))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return llama.unread(_dense(config))


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    return {key: found for key, found in llama.biases(_dense(config)).items() if key != "mlp_bias"}


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    dense = llama.sources(_dense(config))
    return expert_sources(dense, _experts(config), integer(config, "hidden_size"), _place)


def _place(before: str, name: str, shape: tuple[int, ...]) -> Source:
    """experts.3.up.weight lies in block_sparse_moe.experts.3.w3.weight."""
    if name == "router.weight":
        return Source(f"{before}block_sparse_moe.gate.weight", shape)
    *expert, own, kind = name.split(".")
    return Source(".".join([f"{before}block_sparse_moe", *expert, _STORED[own], kind]), shape)


def _dense(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same with MLPs."""
    one_window(config)
    return {key: value for key, value in (_DEFAULTS | config).items() if key not in _KEYS}


def _experts(config: dict[str, Any]) -> Experts:
    count, chosen = counts(config, "num_local_experts", "num_experts_per_tok", (8, 2))
    expert = Mlp(integer(config, "intermediate_size"), "silu")
    return Experts(count, chosen, expert, Routing("all", normalized=True))
