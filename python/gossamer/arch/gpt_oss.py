"""gpt-oss: Llama with sinks, windows in every other layer, and experts whose gate and up lie side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import llama, relatives
from .experts import counts, expert_sources, with_experts
from .fields import integer, number, words
from .llama import PREFIX
from .sources import Source
from .spec import Attention, Experts, Mlp, Routing, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

# The last two are of training, and what the original context is called besides.
_KEYS = words(
    """
    experts_per_token layer_types num_experts_per_tok num_local_experts sliding_window swiglu_alpha swiglu_limit
    output_router_logits initial_context_length
    """
)
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_DEFAULTS = {
    "attention_bias": True,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
}
_FUSED = ("gate", "up")


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    dense = llama.describe(_dense(config))
    window = integer(config, "sliding_window", 128)
    windows = relatives.windows(config, lambda layer: layer % 2 == 0, window)

    def own(layer: int, attention: Attention) -> Attention:
        return replace(attention, window=windows[layer], sinks=True)

    return with_experts(relatives.each_attention(dense, own), _experts(config))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return llama.unread(_dense(config))


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    return {key: found for key, found in llama.biases(_dense(config)).items() if key != "mlp_bias"}


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    experts = _experts(config)

    def place(before: str, name: str, shape: tuple[int, ...]) -> Source:
        if name.startswith("router."):
            return Source(f"{before}mlp.{name}", shape)
        _, index, own, kind = name.split(".")
        stored = "gate_up_proj" if own in _FUSED else "down_proj"
        stored = f"{before}mlp.experts.{stored}{'_bias' if kind == 'bias' else ''}"
        rows, width = None, shape[0]
        if own in _FUSED:  # row by row in turn
            rows, width = (_FUSED.index(own), 1, 2), 2 * width
        whole = (experts.count, *shape[1:], width)
        return Source(stored, whole, int(index), transpose=kind == "weight", rows=rows)

    found = expert_sources(llama.sources(_dense(config)), experts, integer(config, "hidden_size"), place)
    heads = integer(config, "num_attention_heads")
    for layer in range(integer(config, "num_hidden_layers")):
        found[f"layers.{layer}.sinks"] = Source(f"model.layers.{layer}.self_attn.sinks", (heads,))
    return found


def _dense(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same with MLPs, no sinks and no windows."""
    dense = {key: value for key, value in (_DEFAULTS | config).items() if key not in _KEYS}
    if config.get("rope_parameters") is None and not config.get("rope_scaling"):
        dense["rope_parameters"] = _YARN
    return dense


def _experts(config: dict[str, Any]) -> Experts:
    count, chosen = counts(config, "num_local_experts", "num_experts_per_tok", (128, 4))
    if config.get("experts_per_token") not in (None, chosen):
        raise GossamerError(
            f"experts_per_token {config['experts_per_token']!r:.80} is not num_experts_per_tok {chosen}"
        )
    expert = Mlp(
        integer(config, "intermediate_size"),
        "silu",
        biases=("gate", "up", "down"),
        limit=number(config, "swiglu_limit", 7.0),
        alpha=number(config, "swiglu_alpha", 1.702),
        shift=1.0,
    )
    return Experts(count, chosen, expert, Routing("chosen", bias=True))
