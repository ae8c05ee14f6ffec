"""BART: an encoder and a decoder with learned positions and norms behind sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import pairs
from .fields import flag, integer, words
from .pairs import KEYS, NORM, PREFIX, biases, defaults, learned, pair, placed, plain
from .sources import Source
from .spec import Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = KEYS | words("normalize_embedding")
_DEFAULTS = defaults(12, 16, 4096, vocab_size=50265, d_model=1024, max_position_embeddings=1024)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = plain(config, _DEFAULTS)
    if not flag(config, "normalize_embedding", True):
        raise GossamerError("normalize_embedding false is not supported")
    context = integer(config, "max_position_embeddings")
    way_in = learned(config, context, 2, NORM)
    return pair(config, replace(way_in, shared=True), way_in, (context, context), before=False)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return pairs.unread(config, _KEYS, {"extra_pos_embeddings": 2})


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return placed(plain(config, _DEFAULTS), describe(config), "model.shared")
