"""Where the schemas inside a JSON schema stand, and which of them hold together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from ..errors import GossamerError

Schema = dict[str, Any]

BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keys of what holds schemas by names of somebody's own, which may be those of any key."""

VALUES = ("const", "enum", "default", "examples")
"""Keys of values, which are no schemas."""

_MOST = 8192  # steps that a search for conjunctions may take


def subschemas(schema: Any) -> Iterator[Schema]:
    """Yields a schema and all that are in it."""
    if isinstance(schema, list):
        for each in schema:
            yield from subschemas(each)
    if not isinstance(schema, dict):
        return
    yield schema
    for key, inner in schema.items():
        if key in BY_NAME and isinstance(inner, dict):
            yield from subschemas(list(inner.values()))
        elif key not in VALUES:
            yield from subschemas(inner)


def conjunctions(schema: Schema, matches: Callable[[str, str], bool]) -> Iterator[list[Schema]]:
    """Yields the schemas that hold of one value together, for each value that a schema speaks of.

    They come together by `allOf` and `$ref`, by each choice that `anyOf` and `oneOf` leave, and where schemas that hold
    of an object or array speak of the same property or item.

    Args:
        schema: The schema.
        matches: Whether a pattern of the schema's matches somewhere in a text.

    Raises:
        GossamerError: a `$ref` leads out of the schema, or there are too many to look through.
    """
    return _Search(schema, matches).run()


class _Search:
    def __init__(self, root: Schema, matches: Callable[[str, str], bool]) -> None:
        self._root, self._matches = root, matches
        self._steps = 0

    def run(self) -> Iterator[list[Schema]]:
        seen: set[frozenset[int]] = set()
        left: list[list[Any]] = [[self._root]]
        while left:
            for held in self._choices(left.pop(), (), ()):
                key = frozenset(map(id, held))
                if held and key not in seen:
                    seen.add(key)
                    yield held
                    for inner in self._inside(held):
                        self._step()
                        left.append(inner)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MOST:
            raise GossamerError(f"schema: what holds together in it is not found in {_MOST} steps")

    def _choices(
        self, given: list[Any], held: tuple[Schema, ...], undecided: tuple[list[Any], ...]
    ) -> Iterator[list[Schema]]:
        """Yields some schemas with all that they refer to, for each choice that these leave."""
        self._step()
        pending = list(given)
        while pending:
            part = pending.pop()
            if not isinstance(part, dict) or any(part is other for other in held):
                continue
            held = (*held, part)
            if isinstance(reference := part.get("$ref"), str):
                pending.append(_target(reference, self._root))
            pending += _list(part, "allOf")
            undecided = (*undecided, *(found for key in ("anyOf", "oneOf") if (found := _list(part, key))))
        if not undecided:
            yield list(held)
        for choice in undecided[0] if undecided else ():
            yield from self._choices([choice], held, undecided[1:])

    def _inside(self, held: list[Schema]) -> Iterator[list[Any]]:
        """Yields what schemas that hold together say of each property and item of their value."""
        for name in dict.fromkeys(name for part in held for name in _dict(part, "properties")):
            yield [one for part in held for one in self._of_property(part, name)]
        for pattern in dict.fromkeys(pattern for part in held for pattern in _dict(part, "patternProperties")):
            yield [_dict(part, "patternProperties").get(pattern, part.get("additionalProperties")) for part in held]
        yield [part.get("additionalProperties") for part in held]
        firsts = [_list(part, "prefixItems") or _list(part, "items") for part in held]
        rest = [part.get("additionalItems" if isinstance(part.get("items"), list) else "items") for part in held]
        for at in range(max(map(len, firsts))):
            yield [first[at] if at < len(first) else other for first, other in zip(firsts, rest, strict=True)]
        yield rest

    def _of_property(self, part: Schema, name: str) -> list[Any]:
        found = [_dict(part, "properties")[name]] if name in _dict(part, "properties") else []
        for pattern, one in _dict(part, "patternProperties").items():
            self._step()
            if self._matches(pattern, name):
                found.append(one)
        return found or [part.get("additionalProperties")]


def _target(reference: str, root: Schema) -> Any:
    """What a reference leads to: by the steps of a JSON pointer (RFC 6901), or by the name of an anchor."""
    base, _, fragment = unquote(reference).partition("#")
    place: Any = root if base in ("", root.get("$id"), root.get("id")) else None
    if fragment and not fragment.startswith("/"):
        place = next((part for part in subschemas(place) if part.get("$anchor") == fragment), None)
    for step in fragment.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list):
            place = place[int(key)] if key.isascii() and key.isdecimal() and int(key) < len(place) else None
        else:
            place = place.get(key) if isinstance(place, dict) else None
    if place is None:
        raise GossamerError(f"schema: $ref {reference!r:.80} is not in it")
    return place


def _list(part: Schema, key: str) -> list[Any]:
    value = part.get(key)
    return value if isinstance(value, list) else []


def _dict(part: Schema, key: str) -> Schema:
    value = part.get(key)
    return value if isinstance(value, dict) else {}
