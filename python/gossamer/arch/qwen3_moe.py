"""Qwen 3 with experts: Llama with a norm of each head's queries and keys, and experts in place of most MLPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import llama
from .experts import counts, expert_sources, with_experts
from .fields import flag, integer, words
from .llama import PREFIX
from .olmoe import count_key, place
from .relatives import QK_NORMS, epsilon, one_window
from .sources import Source
from .spec import MOST_LAYERS, Attention, Experts, Mlp, Norm, QkNorm, Routing, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

# The last one is of training alone.
KEYS = words(
    """
    decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob num_experts num_experts_per_tok
    num_local_experts output_router_logits
    """
)
_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "use_sliding_window": False,
}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same with MLPs, as Llama's."""
    plain = {key: value for key, value in (_DEFAULTS | config).items() if key not in KEYS}
    one_window(plain if flag(plain, "use_sliding_window") else plain | {"sliding_window": None})
    return plain


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    norm = QkNorm(Norm("rms", epsilon(config)))
    return lambda _, attention: replace(attention, qk_norm=norm)


_KIN = llama.Kin(_plain, _attention, QK_NORMS, ("attention_bias",))
unread, biases = _KIN.unread, _KIN.biases


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    return with_experts(_KIN.describe(config), _experts(config), sparse_layers(config))


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    hidden, layers = integer(config, "hidden_size"), sparse_layers(config)
    return expert_sources(_KIN.sources(config), _experts(config), hidden, place, layers)


def sparse_layers(config: dict[str, Any]) -> set[int]:
    """Returns the layers that have experts.

    Raises:
        GossamerError: a key that says so is of another kind.
    """
    every = integer(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise GossamerError(f"mlp_only_layers must be a list of layers, got {dense!r:.80}")
    layers = range(integer(config, "num_hidden_layers", most=MOST_LAYERS))
    return {layer for layer in layers if layer not in dense and (layer + 1) % every == 0}


def _experts(config: dict[str, Any]) -> Experts:
    count, chosen = counts(config, count_key(config), "num_experts_per_tok", (128, 8))
    expert = Mlp(integer(config, "moe_intermediate_size", 768), "silu")
    return Experts(count, chosen, expert, Routing("all", normalized=flag(config, "norm_topk_prob")))
