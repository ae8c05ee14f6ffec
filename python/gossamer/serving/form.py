"""What chat and plain completions share: how an answer is sent, and why it ended, in OpenAI's words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .fields import Fields

if TYPE_CHECKING:
    from .exchange import Asked

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "closed": "stop"}

_LONGEST_USER = 512


@dataclass(frozen=True)
class Form:
    """How an answer is sent.

    Attributes:
        stream: As events, piece by piece.
        usage: Whether the last event counts tokens.
        user: Who asks, as the client says, for the log.
    """

    stream: bool
    usage: bool
    user: str


def read_form(fields: Fields) -> Form:
    """Takes the parameters that say how to answer.

    Raises:
        ApiError: one is no good.
    """
    stream = fields.take("stream", bool, False) or False
    options = Fields(fields.take("stream_options", dict, {}), "stream_options")
    usage = options.take("include_usage", bool, False) or False
    options.only("include_obfuscation", False)
    options.end()
    if usage and not stream:
        raise fields.refuse("stream_options", "is for streams alone", "invalid_value")
    users = [fields.take(name, str) or "" for name in ("user", "safety_identifier")]
    if any(len(user) > _LONGEST_USER for user in users):
        raise fields.refuse("user", f"may have {_LONGEST_USER} letters", "invalid_value")
    return Form(stream, usage, next(filter(None, users), ""))


def fingerprint(asked: Asked) -> str:
    """Returns what changes where answers with the same seed may: gossamer's version, the model, its adapters."""
    info = asked.served.model.info
    return _fingerprint(asked.name, str(info.get("path") or info.get("name")), ",".join(asked.adapters))


@lru_cache(256)
def _fingerprint(*parts: str) -> str:
    from .. import __version__

    return "fp_" + hashlib.sha256("\0".join([__version__, *parts]).encode("utf-8", "replace")).hexdigest()[:12]
