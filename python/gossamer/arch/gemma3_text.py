"""Gemma 3, text alone: Gemma 2 with norms of queries and keys, and other rotary frequencies in layers with a window."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import gemma, keys, relatives
from .fields import FULL, SLIDING, flag, integer, number
from .gemma import PREFIX, biases
from .rope import Rotary, of_kind, rotary
from .sources import Source
from .spec import Head, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = gemma.KEYS | {
    "final_logit_softcapping",
    "layer_types",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "sliding_window",
    "sliding_window_pattern",
    "_sliding_window_pattern",
}
_DEFAULTS = gemma.DEFAULTS | {
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": None,
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    full = {**_DEFAULTS, **config}
    dim = relatives.head_dim(full)
    wide = of_kind({**full, "rope_theta": full.get("rope_theta", 1e6)}, FULL)
    near = of_kind(full, SLIDING)
    if near is full:  # the older layout: the base alone, without the scaling of the others
        plain = {key: value for key, value in full.items() if key not in ("rope_scaling", "rope_parameters")}
        near = {**plain, "rope_theta": number(full, "rope_local_base_freq", 1e4)}
    return _outline(config, [rotary(wide, dim), rotary(near, dim)])


def _outline(config: dict[str, Any], turned: list[Rotary] | None) -> Transformer:
    config = {**_DEFAULTS, **config}
    window = None if config["sliding_window"] is None else integer(config, "sliding_window")
    pattern = integer(config, "sliding_window_pattern", 6)
    hidden = config.get("_sliding_window_pattern")  # which is written, and not read
    if config.get("layer_types") is None and hidden not in (None, pattern):
        raise GossamerError(f"_sliding_window_pattern {hidden!r:.80} contradicts sliding_window_pattern {pattern}")
    cap = config["final_logit_softcapping"]
    attentions = [
        gemma.attention(
            config,
            relatives.rope(turned[one is not None] if turned else None),
            window=one,
            qk_norm=gemma.qk_norm(config),
        )
        for one in relatives.windows(config, lambda layer: (layer + 1) % pattern != 0, window)
    ]
    head = Head(
        flag(config, "tie_word_embeddings"), softcap=None if cap is None else number(config, "final_logit_softcapping")
    )
    context = min(one.context for one in turned) if turned else 1
    return gemma.decoder(config, attentions, context, behind=True, head=head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return gemma.placed(_outline(config, None))
