"""OLMoE: Llama with norms of queries and keys over all heads, and experts in place of the MLPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import keys, llama
from .experts import counts, expert_sources, with_experts
from .fields import flag, integer, number, words
from .llama import PREFIX
from .relatives import QK_NORMS, epsilon, no_windows
from .sources import Source
from .spec import Attention, Experts, Mlp, Norm, QkNorm, Routing, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

# The last one is of training alone.
_KEYS = words("clip_qkv norm_topk_prob num_experts num_experts_per_tok num_local_experts output_router_logits")
_DEFAULTS = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same with MLPs, as Llama's."""
    return {key: value for key, value in (_DEFAULTS | config).items() if key not in _KEYS}


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    clip = None if config.get("clip_qkv") is None else number(config, "clip_qkv")
    norm = QkNorm(Norm("rms", epsilon(config, default=1e-5)), over="row")
    return lambda _, attention: replace(attention, qk_norm=norm, clip=clip)


_KIN = llama.Kin(_plain, _attention, QK_NORMS, ("attention_bias",))
unread, biases = _KIN.unread, _KIN.biases


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    no_windows(config)
    return with_experts(_KIN.describe(config), _experts(config))


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return expert_sources(_KIN.sources(config), _experts(config), integer(config, "hidden_size"), place)


def place(before: str, name: str, shape: tuple[int, ...]) -> Source:
    """experts.3.up.weight lies in mlp.experts.3.up_proj.weight, as for other families with experts."""
    if name == "router.weight":
        return Source(f"{before}mlp.gate.weight", shape)
    if name == "shared_gate.weight":
        return Source(f"{before}mlp.shared_expert_gate.weight", shape)
    *expert, own, kind = name.replace("shared.", "shared_expert.").split(".")
    return Source(".".join([f"{before}mlp", *expert, f"{own}_proj", kind]), shape)


def count_key(config: dict[str, Any]) -> str:
    """Returns the key that says how many experts there are, of two names.

    Raises:
        GossamerError: both are there, and say different things.
    """
    keys.plainly(config, {"num_local_experts": "num_experts"})
    return "num_local_experts" if config.get("num_experts") is None else "num_experts"


def _experts(config: dict[str, Any]) -> Experts:
    count, chosen = counts(config, count_key(config), "num_experts_per_tok", (64, 8))
    expert = Mlp(integer(config, "intermediate_size"), "silu")
    return Experts(count, chosen, expert, Routing("all", normalized=flag(config, "norm_topk_prob")))
