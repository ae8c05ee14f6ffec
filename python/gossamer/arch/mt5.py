"""mT5: T5 1.1 in many languages, whose head is not scaled."""

from __future__ import annotations

from typing import Any

from . import t5
from .relatives import no_biases as biases
from .sources import Source
from .spec import Transformer
from .t5 import PREFIX, unread

__all__ = ["PREFIX", "biases", "describe", "settle", "sources", "unread"]


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    return t5.describe({"feed_forward_proj": "gated-gelu", **config, "scale_decoder_outputs": False})


def settle(config: dict[str, Any]) -> dict[str, Any]:
    """Nothing follows from what is tied; see `gossamer.arch.settled`."""
    return dict(config)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return t5.sources({"feed_forward_proj": "gated-gelu", **config})
