"""Typed access to config.json, which is untrusted: a value of the wrong type is one line that names its key."""

from __future__ import annotations

import math
from typing import Any

from ..errors import GossamerError


def words(text: str) -> frozenset[str]:
    """Returns the words of a text, for long lists of keys."""
    return frozenset(text.split())


_LARGEST = 1 << 24  # sizes beyond it are nonsense today, and products of two stay far from overflow


def integer(config: dict[str, Any], key: str, default: int | None = None, most: int = _LARGEST) -> int:
    """Returns a positive integer; a missing or null key gives the default.

    Raises:
        GossamerError: it is missing without a default, or not an integer from 1 to `most`.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise GossamerError(f"{key} is missing")
    if type(value) is not int or not 1 <= value <= most:
        raise GossamerError(f"{key} must be a whole number from 1 to {most}, got {value!r:.80}")
    return value


def number(config: dict[str, Any], key: str, default: float | None = None, where: str = "") -> float:
    """Returns a positive finite number; a missing or null key gives the default.

    Raises:
        GossamerError: it is missing without a default, or not such a number.
    """
    value = config.get(key)
    name = f"{where}: {key}" if where else key
    if value is None:
        value = default
    if value is None:
        raise GossamerError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
        raise GossamerError(f"{name} must be a number above 0, got {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise GossamerError(f"{name} is beyond float, with {len(str(value))} digits") from None


def flag(config: dict[str, Any], key: str, default: bool = False) -> bool:
    """Returns a boolean; a missing or null key gives the default.

    Raises:
        GossamerError: it is something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise GossamerError(f"{key} must be true or false, got {value!r:.80}")
    return default if value is None else value
