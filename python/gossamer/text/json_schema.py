"""Where the schemas inside a JSON schema stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keys of what holds schemas by names of somebody's own, which may be those of any key."""

VALUES = ("const", "enum", "default", "examples")
"""Keys of values, which are no schemas."""


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yields a schema and all that are in it."""
    if isinstance(schema, list):
        for each in schema:
            yield from parts(each)
    if not isinstance(schema, dict):
        return
    yield schema
    for key, inner in schema.items():
        if key in BY_NAME and isinstance(inner, dict):
            yield from parts(list(inner.values()))
        elif key not in VALUES:
            yield from parts(inner)
