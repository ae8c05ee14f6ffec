"""Messages and tools of a request, checked and put as chat templates expect them."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import ApiError
from .fields import Fields

_MOST_TOOLS = 128  # as OpenAI has it
_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(values: list[Any]) -> list[dict[str, Any]]:
    """Returns messages for a chat template.

    A developer's message is a system message, and arguments of earlier calls are objects: templates know no others.

    Raises:
        ApiError: one is not what OpenAI's form has; it names the message and its part.
    """
    if not values:
        raise ApiError(400, "messages: there must be one or more", param="messages", code="invalid_value")
    messages, called = [], set()
    for number, value in enumerate(values):
        fields = Fields(value, f"messages[{number}]")
        messages.append(message := _message(fields))
        called |= {call["id"] for call in message.get("tool_calls", ())}
        if (answered := message.get("tool_call_id")) is not None and answered not in called:
            raise fields.refuse("tool_call_id", f"no call before it has the id {answered!r:.80}", "invalid_value")
    return messages


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.need("role", str)
    if role not in _ROLES:
        raise fields.refuse("role", f"must be one of {', '.join(_ROLES)}, got {role!r:.80}", "invalid_value")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = fields.raw("content")
    if content is not None:
        message["content"] = _content(fields, content)
    if name := fields.take("name", str):
        message["name"] = name
    if role == "assistant":
        if calls := fields.take("tool_calls", list):
            message["tool_calls"] = [
                _past_call(Fields(call, f"{fields.name('tool_calls')}[{number}]")) for number, call in enumerate(calls)
            ]
        fields.refuse_all(("refusal", "audio", "function_call"))
        fields.only("annotations", [])
    if role == "tool":
        message["tool_call_id"] = fields.need("tool_call_id", str)
    fields.end()
    if content is None and "tool_calls" not in message:
        raise fields.refuse("content", "is missing", "missing_required_parameter")
    return message


def _content(fields: Fields, content: Any) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise fields.refuse("content", f"must be a text or a list of parts, got {content!r:.80}", "invalid_type")
    return [_part(Fields(part, f"{fields.name('content')}[{number}]")) for number, part in enumerate(content)]


def _part(fields: Fields) -> dict[str, str]:
    kind = fields.need("type", str)
    if kind != "text":
        raise fields.refuse("type", f"this model reads text alone, got a part of type {kind!r:.80}", "invalid_value")
    text = fields.need("text", str)
    fields.end()
    return {"type": "text", "text": text}


def _past_call(fields: Fields) -> dict[str, Any]:
    id_ = fields.need("id", str)
    fields.only("type", "function")
    function = Fields(fields.need("function", dict), fields.name("function"))
    name, written = function.need("name", str), function.need("arguments", str)
    function.end()
    fields.end()
    try:
        arguments = json.loads(written or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise function.refuse("arguments", f"must be a JSON object as text, got {written!r:.80}", "invalid_value")
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def read_tools(values: list[Any]) -> list[dict[str, Any]]:
    """Returns tools for a chat template, each with whether its arguments have to fit its schema, `strict`.

    Raises:
        ApiError: one is not what OpenAI's form has, or two have one name.
    """
    if len(values) > _MOST_TOOLS:
        raise ApiError(
            400, f"tools: there may be {_MOST_TOOLS}, got {len(values)}", param="tools", code="invalid_value"
        )
    tools: list[dict[str, Any]] = []
    for number, value in enumerate(values):
        fields = Fields(value, f"tools[{number}]")
        kind = fields.need("type", str)
        if kind != "function":
            raise fields.refuse("type", f"must be 'function', got {kind!r:.80}", "invalid_value")
        function = Fields(fields.need("function", dict), fields.name("function"))
        name = function.need("name", str)
        if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
            raise function.refuse(
                "name", f"must be 1 to 64 letters, digits, _, . or -, got {name!r:.80}", "invalid_value"
            )
        if name in [tool["function"]["name"] for tool in tools]:
            raise function.refuse("name", f"stands twice: {name}", "invalid_value")
        about: dict[str, Any] = {"name": name}
        about["description"] = function.take("description", str, "")
        about["parameters"] = function.take("parameters", dict) or {"type": "object", "properties": {}}
        strict = function.take("strict", bool, False)
        function.end()
        fields.end()
        tools.append({"type": "function", "function": about, "strict": strict})
    return tools
