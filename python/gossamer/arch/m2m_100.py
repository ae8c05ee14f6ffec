"""M2M-100 and NLLB: translation between many languages; sinusoidal positions behind the padding token's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import pairs
from .encoders import pad
from .fields import integer
from .pairs import PREFIX, biases, defaults, pair, placed, plain, sinusoids
from .sources import Source
from .spec import Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_DEFAULTS = defaults(
    12, 16, 4096, vocab_size=128112, d_model=1024, max_position_embeddings=1024, activation_function="relu"
)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = plain(config, _DEFAULTS)
    context = integer(config, "max_position_embeddings")
    way_in = sinusoids(config, pad(config, 1) + 1, integer(config, "d_model") // 2 - 1, default=True)
    return pair(config, replace(way_in, shared=True), way_in, (context, context), before=True)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return pairs.unread(config)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return placed(plain(config, _DEFAULTS), describe(config), "model.shared")
