"""Gemma 2: Gemma with norms behind mixers too, capped scores and logits, and a window in every second layer."""

from __future__ import annotations

from typing import Any

from . import gemma, keys, relatives
from .fields import flag, integer, number
from .gemma import PREFIX, biases
from .rope import rotary
from .sources import Source
from .spec import Head, Rope, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = gemma.KEYS | {
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "layer_types",
    "query_pre_attn_scalar",
    "sliding_window",
}
_DEFAULTS = gemma.DEFAULTS | {
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    turned = rotary({**_DEFAULTS, **config}, relatives.head_dim({**_DEFAULTS, **config}))
    return _outline(config, relatives.rope(turned), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    config = {**_DEFAULTS, **config}
    window = None if config["sliding_window"] is None else integer(config, "sliding_window")
    caps = [
        None if config[key] is None else number(config, key)
        for key in ("attn_logit_softcapping", "final_logit_softcapping")
    ]
    attentions = [
        gemma.attention(config, positions, window=one, softcap=caps[0])
        for one in relatives.windows(config, lambda layer: layer % 2 == 0, window)
    ]
    head = Head(flag(config, "tie_word_embeddings"), softcap=caps[1])
    return gemma.decoder(config, attentions, context, behind=True, head=head)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return gemma.placed(_outline(config, None, 1))
