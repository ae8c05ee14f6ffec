"""The keys that a GGUF file has for a description: what it tells by itself, and of its config what it does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arch.fields import FULL
from ..arch.rope import original
from ..arch.spec import Attention, Experts, Mlp, Rope, Transformer
from ..errors import GossamerError
from .gguf_config import KNOWN, ROPE_FACTORS, ROTARY
from .gguf_families import Architecture

_FLOATS = ("epsilon", "scale", "softcapping", "clamp_kqv", "alibi_bias", "freq_base", "freq_base_swa", "factor")
"""Ends of the keys whose values are no whole numbers, whatever a config has."""
_SCALED = ("default", "linear", "yarn", "llama3", "longrope")


def described_keys(
    config: dict[str, Any], architecture: Architecture, described: Transformer
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Returns the keys, without the architecture's name before them, and the rotary divisors that are tensors, by name.

    Whether they say all of the description is not asked here.

    Args:
        config: Content of config.json.
        architecture: What the file will be.
        described: The description.

    Raises:
        GossamerError: a key that the file must have is not there, or rotary frequencies are scaled as no file says it.
    """
    told = _told(config, described) | {key: tell(described) for key, tell in architecture.told.items()}
    if norm := described.stack.norm:
        told |= {key: norm.eps for key in architecture.keys if key.endswith("epsilon")}
    rotary, factors = _rotary(config, described) if architecture.rotary else ({}, {})
    told |= rotary
    asked = {**architecture.needed, **architecture.optional}
    found = {key: config.get(own) for own, key in asked.items()} | told
    if missing := [own for own, key in architecture.needed.items() if found[key] is None]:
        raise GossamerError(f"{missing[0]} is missing from its config")
    known = {*architecture.keys, *KNOWN, *ROTARY}
    keys = {key: value for key, value in found.items() if value is not None and key in known}
    return {key: float(value) if key.endswith(_FLOATS) else value for key, value in keys.items()}, factors


def _told(config: dict[str, Any], described: Transformer) -> dict[str, Any]:
    """What the description says; None where it has nothing of that."""
    mixers = [branch.mixer for block in described.stack.kinds for branch in block.branches]
    attentions = [one for one in mixers if isinstance(one, Attention)]
    experts = next((one for one in mixers if isinstance(one, Experts)), None)
    mlp = next((one for one in mixers if isinstance(one, Mlp)), None)
    first, head = attentions[0], described.head
    width = mlp.width if mlp else config.get("intermediate_size") or (experts and experts.expert.width)
    return {
        "embedding_length": described.hidden,
        "block_count": described.layers,
        "context_length": config.get("max_position_embeddings") or described.context,
        "feed_forward_length": width,
        "attention.head_count": first.heads,
        "attention.head_count_kv": first.kv_heads,
        "attention.key_length": first.head_dim,
        "attention.value_length": first.head_dim,
        "attention.scale": first.scale,
        "attention.sliding_window": max((one.window for one in attentions if one.window), default=None),
        "attention.clamp_kqv": first.clip,
        "attn_logit_softcapping": first.softcap,
        "final_logit_softcapping": head and head.softcap,
        "expert_count": experts and experts.count,
        "expert_used_count": experts and experts.chosen,
        "expert_feed_forward_length": experts and experts.expert.width,
        "expert_shared_feed_forward_length": experts and experts.shared and experts.shared.width,
    }


def _rotary(config: dict[str, Any], described: Transformer) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The keys of rotary frequencies, and the divisors of those that keys do not tell: Llama 3's and LongRoPE's."""
    turned = [(one.window, one.positions) for one in described.stack.attentions if isinstance(one.positions, Rope)]
    if not turned:
        return {}, {}
    wide = next((positions for window, positions in turned if window is None), turned[0][1])
    near = next((positions for window, positions in turned if window is not None), wide)
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    given = given.get(FULL) or given
    kind = "longrope" if given.get("short_factor") else given.get("rope_type") or given.get("type") or "default"
    if kind not in _SCALED:
        raise GossamerError(f"rope_type {kind!r:.80} is none that files have")
    theta = float(given.get("rope_theta") or config.get("rope_theta") or _base(wide))
    count = len(wide.inv_freq)
    keys = {"rope.dimension_count": 2 * count, "rope.freq_base": theta, "rope.freq_base_swa": _base(near)}
    whole, short, long = ROPE_FACTORS
    scaling: dict[str, Any] = {}
    factors: dict[str, list[float]] = {}
    context = config.get("max_position_embeddings") or described.context
    if kind == "longrope":
        if not given.get("long_factor"):
            raise GossamerError("rope_parameters: long_factor is missing")
        factors = {short: given["short_factor"], long: given["long_factor"]}
        scaling = {"original_context_length": original(config, given, context), "attn_factor": wide.scale}
    elif kind == "linear":
        scaling = {"type": kind, "factor": given["factor"]}
    elif kind == "yarn":
        trained = original(config, given, context)
        bounds = {f"yarn_{name}": given.get(name) for name in ("beta_fast", "beta_slow")}
        bounds["yarn_log_multiplier"] = given.get("mscale_all_dim")
        scaling = {"type": kind, "original_context_length": trained, "factor": given.get("factor") or context / trained}
        scaling |= {name: float(value) for name, value in bounds.items() if value}
    elif kind == "llama3":
        plain = theta ** -(np.arange(count) / count)
        factors = {whole: (plain / np.array(wide.inv_freq)).tolist()}
    return keys | {f"rope.scaling.{name}": value for name, value in scaling.items()}, factors


def _base(turned: Rope) -> float:
    """The base that frequencies without scaling are powers of, which files have as float32."""
    first, second, *_ = (*turned.inv_freq, 1.0, 1.0)
    return float(f"{(first / second) ** len(turned.inv_freq):.5g}")
