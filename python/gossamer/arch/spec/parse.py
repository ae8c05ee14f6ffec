"""Descriptions as JSON values and back: the dataclasses themselves say what is allowed."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal

from ...errors import GossamerError

LARGEST = 1 << 24
"""The most that any size may be, so that sizes multiply without overflow."""
_ROUNDED = 1e-6  # of what float32 rounds, and of a step or two computed with it


def require(fair: bool, *words: object) -> None:
    """Raises `GossamerError` with these words where something is not fair."""
    if not fair:
        raise GossamerError("".join(map(str, words)))


def require_sizes(part: Any, *names: str, most: int = LARGEST) -> None:
    """Raises `GossamerError` where a field of a part is no size: a whole number from 1 to `most`."""
    for name in names:
        value = getattr(part, name)
        fair = type(value) is int and 1 <= value <= most
        require(fair, f"{name} must be from 1 to {most}, got {value!r:.80}")


def plain(value: Any) -> Any:
    """Returns a part, or a value in one, as JSON-ready values."""
    if is_dataclass(value):
        tag = {"part": value.part} if hasattr(value, "part") else {}
        return tag | {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def parse(part: Any, values: Any, where: str) -> Any:
    """Reads a part of a description out of JSON values; fields that have a default may be missing.

    Args:
        part: One of the classes above.
        values: What `to_dict` makes of it.
        where: What errors call it.

    Raises:
        GossamerError: as `Transformer.from_dict`.
    """
    require(isinstance(values, dict), f"{where} must be an object, got {values!r:.80}")
    values = dict(values)
    if hasattr(part, "part"):
        tag = values.pop("part", None)
        require(tag == part.part, f"{where}: part must be {part.part!r}, got {tag!r:.80}")
    hints = _hints(part)
    if unknown := sorted(set(values) - set(hints), key=str):
        raise GossamerError(f"{where}: {unknown[0]!s:.80} is not known; there are: {', '.join(hints)}")
    found = {}
    for field in fields(part):
        if field.name in values:
            found[field.name] = _value(hints[field.name], values[field.name], f"{where}.{field.name}")
        elif field.default is MISSING:
            raise GossamerError(f"{where}: {field.name} is missing")
    try:
        return part(**found)
    except GossamerError as error:
        raise GossamerError(f"{where}: {error}") from None


@cache
def _hints(part: type) -> dict[str, Any]:
    own = typing.get_type_hints(part)
    return {field.name: own[field.name] for field in fields(part)}


def difference(one: Any, other: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Returns where two parts differ, and what they have there; None where they do in nothing but what float32 rounds.

    Args:
        one: A part, or a value in one.
        other: Likewise.
        where: What it is called.
    """
    pairs: list[tuple[str, Any, Any]] = []
    if is_dataclass(one) and type(one) is type(other):
        names = [field.name for field in fields(one)]
        pairs = [(f"{where}.{name}".strip("."), getattr(one, name), getattr(other, name)) for name in names]
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = [(f"{where}[{at}]", *both) for at, both in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, float) and isinstance(other, float):
        return None if math.isclose(one, other, rel_tol=_ROUNDED) else (where, one, other)
    elif one != other:
        return where, one, other
    return next((found for name, *both in pairs if (found := difference(both[0], both[1], name))), None)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        require(isinstance(value, list), f"{where} must be a list, got {value!r:.80}")
        return tuple(_value(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Literal:
        names = " or ".join(map(repr, inner))
        require(type(value) is type(inner[0]) and value in inner, f"{where} must be {names}, got {value!r:.80}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        parts = [one for one in inner if is_dataclass(one)]
        if not parts:
            return _value(inner[0], value, where)
        tags = {one.part: one for one in parts if hasattr(one, "part")}
        if not tags:
            return parse(parts[0], value, where)
        tag = value.get("part") if isinstance(value, dict) else None
        known = ", ".join(tags)
        require(isinstance(tag, str) and tag in tags, f"{where}: part {tag!r:.80} is not known; there are: {known}")
        return parse(tags[str(tag)], value, where)
    if is_dataclass(kind):
        return parse(kind, value, where)
    if kind is float and type(value) is int and abs(value) <= LARGEST:
        return float(value)
    require(type(value) is kind, f"{where} must be of type {kind.__name__}, got {value!r:.80}")
    return value
