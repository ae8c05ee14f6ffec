"""OLMo 3: OLMo 2 with a sliding window in three of four layers, whose rotary frequencies may be others."""

from __future__ import annotations

from typing import Any

from ..errors import GossamerError
from . import keys, olmo2, relatives
from .fields import FULL, SLIDING, integer
from .olmo2 import PREFIX, biases
from .rope import of_kind, rotary
from .sources import Source
from .spec import Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = olmo2.KEYS | {"layer_types", "sliding_window"}
_THETA = 500000.0
_DEFAULTS = {"sliding_window": 4096, "rope_theta": _THETA}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = {**_DEFAULTS, **config}
    window = None if config["sliding_window"] is None else integer(config, "sliding_window")
    found = relatives.windows(config, lambda layer: (layer + 1) % 4 != 0, window)
    if config["rope_theta"] not in (None, _THETA):
        raise GossamerError(f"rope_theta {config['rope_theta']!r:.80} is not supported: of all layers it is {_THETA}")
    wide, near = of_kind(config, FULL), of_kind(config, SLIDING)
    if near is config:  # scaling is for what sees everything
        near = {key: value for key, value in config.items() if key != "rope_scaling"}
    turned = [rotary(one, relatives.head_dim(config)) for one in (wide, near)]
    each = [(relatives.rope(turned[one is not None]), one) for one in found]
    return olmo2.outline(config, each, min(one.context for one in turned))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return olmo2.sources(config)
