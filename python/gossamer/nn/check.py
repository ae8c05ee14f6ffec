"""What a torch decoder takes of a description, so that it leaves nothing of it out: the rest is refused by name.

Whoever computes something names the fields that it computes with. A field that is not named has to have its default,
with which a description says what it said before there was that field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from ..errors import GossamerError

T = TypeVar("T")


def unknown(part: Any, known: tuple[str, ...]) -> str | None:
    """Returns the first field by which a part says more than the known ones do, or None."""
    for field in fields(part):
        if field.name not in known and (field.default is MISSING or getattr(part, field.name) != field.default):
            return field.name
    return None


def expect(part: Any, *known: str) -> None:
    """Refuses a part of a description that says more than some fields do.

    Args:
        part: One of the classes of `gossamer.arch.spec`.
        known: The fields that are computed with.

    Raises:
        GossamerError: it does; the line names the field.
    """
    name = unknown(part, known)
    if name is not None:
        raise GossamerError(f"{_name(part)}: {name} {getattr(part, name)!r:.80} is nothing that torch decoders know")


def choose(table: Mapping[str, T], part: Any, field: str) -> T:
    """Returns the entry of a table that a field names; the name of a part is its tag.

    Raises:
        GossamerError: there is none; the line names the field and what there is.
    """
    value = getattr(part, field)
    name = getattr(value, "part", type(value).__name__) if hasattr(value, "__dataclass_fields__") else value
    if name not in table:
        raise GossamerError(
            f"{_name(part)}: {field} {name!r:.80} is nothing that torch decoders know; they have: {', '.join(table)}"
        )
    return table[name]


def _name(part: Any) -> str:
    return type(part).__name__.lower()
