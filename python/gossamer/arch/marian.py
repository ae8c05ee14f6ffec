"""Marian, as OPUS-MT's models are: an encoder and a decoder with sinusoidal positions and norms behind sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import pairs
from .fields import flag, integer, words
from .pairs import KEYS, PREFIX, biases, defaults, pair, placed, plain, sinusoids
from .sources import Source
from .spec import Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_KEYS = KEYS | words("decoder_vocab_size share_encoder_decoder_embeddings static_position_embeddings")
_DEFAULTS = defaults(12, 16, 4096, vocab_size=58101, d_model=1024, max_position_embeddings=1024)


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = plain(config, _DEFAULTS)
    if not flag(config, "share_encoder_decoder_embeddings", True):
        raise GossamerError("share_encoder_decoder_embeddings false is not supported")
    if not flag(config, "static_position_embeddings", True):
        raise GossamerError("static_position_embeddings false is not supported")
    if integer(config, "decoder_vocab_size", config["vocab_size"]) != config["vocab_size"]:
        raise GossamerError("decoder_vocab_size is not supported, but where it is vocab_size")
    context = integer(config, "max_position_embeddings")
    way_in = sinusoids(config, 0, integer(config, "d_model") // 2, default=False)
    return pair(config, replace(way_in, shared=True), way_in, (context, context), before=False)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return pairs.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return placed(plain(config, _DEFAULTS), describe(config), "model.shared")
