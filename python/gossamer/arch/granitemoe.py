"""Granite with experts, which lie in three stacks: gates and ups, downs, and a router that chooses before it weighs."""

from __future__ import annotations

from typing import Any

from . import granite
from .experts import counts, expert_sources, with_experts
from .fields import activation, integer, words
from .granite import PREFIX
from .sources import Source
from .spec import Experts, Mlp, Routing, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = words("num_experts_per_tok num_local_experts output_router_logits")  # the last one is of training


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    return with_experts(granite.describe(_dense(config)), _experts(config))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return granite.unread(_dense(config))


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    return granite.biases(_dense(config))


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    experts, hidden = _experts(config), integer(config, "hidden_size")
    width = experts.expert.width

    def place(before: str, name: str, shape: tuple[int, ...]) -> Source:
        before += "block_sparse_moe."
        if name == "router.weight":
            return Source(f"{before}router.layer.weight", shape)
        _, index, own, _ = name.split(".")
        if own == "down":
            return Source(f"{before}output_linear.weight", (experts.count, *shape), int(index))
        rows = (0 if own == "gate" else width, width, 2 * width)
        return Source(f"{before}input_linear.weight", (experts.count, 2 * width, hidden), int(index), rows=rows)

    return expert_sources(granite.sources(_dense(config)), experts, hidden, place)


def _dense(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same with MLPs."""
    return {key: value for key, value in config.items() if key not in _KEYS}


def _experts(config: dict[str, Any]) -> Experts:
    count, chosen = counts(config, "num_local_experts", "num_experts_per_tok", (8, 2))
    expert = Mlp(integer(config, "intermediate_size"), activation(config, "hidden_act", "silu"))
    return Experts(count, chosen, expert, Routing("chosen"))
