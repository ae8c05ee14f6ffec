"""RoBERTa: BERT whose positions begin behind the number of the padding token."""

from __future__ import annotations

from typing import Any

from .bert import KEYS, biases, unread
from .encoders import ENDS, INSIDE, behind, encoder, pad
from .fields import integer
from .sources import Source, place
from .spec import Transformer

__all__ = ["KEYS", "PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "roberta."


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    return encoder(config, offset=pad(config, 1) + 1, types=integer(config, "type_vocab_size", 2))


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(describe(config), behind(PREFIX, ENDS), f"{PREFIX}encoder.layer.{{}}.", INSIDE)
