"""Whether arguments are of the kinds that they should be: what Python would take for something else is refused."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .errors import GossamerError

_KINDS: dict[str, tuple[type, str]] = {
    "bool": (bool, "true or false"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "a text"),
    "Path": (Path, "a path"),
    "None": (type(None), "None"),
}


def whole_number(name: str, value: Any, least: int) -> int:
    """Returns a whole number, numpy's too, as Python's.

    Raises:
        GossamerError: it is none, a truth value included, or less than `least`.
    """
    check_kind(name, value, "int")
    if value < least:
        raise GossamerError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_flag(name: str, value: Any, *, or_none: bool = False) -> None:
    """Raises `GossamerError` where a value is neither true nor false, nor, if that is allowed, None."""
    if not (or_none and value is None):
        check_kind(name, value, "bool")


def check_kind(name: str, value: Any, *kinds: str) -> str:
    """Returns the first of some kinds, written as annotations are, that a value is of.

    Raises:
        GossamerError: it is of none; the line names it.
    """
    found = next((kind for kind in kinds if is_kind(value, kind)), None)
    if found is None:
        what = " or ".join(_KINDS[kind][1] for kind in kinds)
        raise GossamerError(f"{name} must be {what}, got {value!r:.80}")
    return found


def is_kind(value: Any, kind: str) -> bool:
    """Whether a value is of a kind; truth values are no numbers."""
    return isinstance(value, _KINDS[kind][0]) and (kind == "bool" or not isinstance(value, bool))


def check_kinds(options: Any) -> None:
    """Checks the fields of a dataclass against what they are annotated with; numbers of numpy become Python's.

    Fields of other kinds than truth values, numbers, texts, paths and None are left alone.

    Raises:
        GossamerError: one is of another kind; the line names it.
    """
    for field in fields(options):
        kinds, value = [kind.strip() for kind in str(field.type).split("|")], getattr(options, field.name)
        if not all(kind in _KINDS for kind in kinds):
            continue
        if check_kind(field.name, value, *kinds) in ("int", "float") and type(value) not in (int, float):
            object.__setattr__(options, field.name, int(value) if isinstance(value, Integral) else float(value))
