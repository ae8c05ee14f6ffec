"""`response_format`: the JSON schema that an answer is held to."""

from __future__ import annotations

import re
from typing import Any

from .fields import Fields

_OBJECT = {"type": "object"}


def read_response_format(fields: Fields) -> dict[str, Any] | None:
    """Takes the parameter; returns the schema, or None where any text will do.

    The schema's name and description are for people: nothing is told to the model but by the messages.

    Raises:
        ApiError: it is no good.
    """
    value = fields.take("response_format", dict)
    if value is None:
        return None
    inner = Fields(value, "response_format")
    kind = inner.need("type", str)
    schema = _schema(inner) if kind == "json_schema" else _OBJECT if kind == "json_object" else None
    if kind not in ("text", "json_object", "json_schema"):
        raise inner.refuse("type", f"must be text, json_object or json_schema, got {kind!r:.80}", "invalid_value")
    inner.end()
    return schema


def _schema(fields: Fields) -> dict[str, Any]:
    about = Fields(fields.need("json_schema", dict), fields.name("json_schema"))
    name = about.need("name", str)
    if not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
        raise about.refuse("name", f"must be 1 to 64 of A-Z a-z 0-9 _ -, got {name!r:.80}", "invalid_value")
    about.take("description", str)
    about.take("strict", bool)  # it is held to either way
    schema = about.take("schema", dict)
    about.end()
    return _OBJECT if schema is None else schema
