"""`tools` and `tool_choice`: what a model is told of, and a schema where it has to call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..text.json_schema import BY_NAME, VALUES
from .fields import Fields
from .messages import read_tools
from .tool_calls import CallReader, ForcedReader, Form, form_of

if TYPE_CHECKING:
    from .served import Served


@dataclass(frozen=True)
class Tools:
    """The tools of a request.

    Attributes:
        told: What the chat template is given; none where the model may not call.
        form: How the model writes calls; None where there are no tools.
        one_call: Whether a call ends the answer.
        forced: Schema of the call that the model has to write; None where it may as well write text.
    """

    told: list[dict[str, Any]]
    form: Form | None = None
    one_call: bool = False
    forced: dict[str, Any] | None = None

    @property
    def opening(self) -> str:
        """What is put into the model's mouth."""
        return self.form.opening if self.form is not None and self.forced is not None else ""

    def reader(self) -> CallReader | None:
        """Returns what reads calls out of an answer; None where there are none."""
        if self.form is None:
            return None
        if self.forced is not None:
            return ForcedReader(self.form)
        return self.form.reader([tool["function"]["name"] for tool in self.told])


def read_tool_choice(fields: Fields, served: Served) -> Tools:
    """Takes `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises:
        ApiError: one is no good, or the model has no form of calls that is known.
    """
    tools = read_tools(fields.take("tools", list) or [])
    choice, named = _choice(fields)
    parallel = fields.take("parallel_tool_calls", bool, True)
    if choice in ("auto", "required", "named") and not tools:
        raise fields.refuse("tool_choice", "there are no tools to choose from", "invalid_value")
    if not tools or choice == "none":
        return Tools([])
    form = form_of(served.model.tokenizer.tool_template or served.model.tokenizer.chat_template or "")
    if form is None:
        raise fields.refuse("tools", f"{served.name} has no form of calling tools that is known here", "invalid_value")
    if choice not in ("required", "named"):
        for number, tool in enumerate(tools):
            if tool["strict"]:
                where = f"tools[{number}].function.strict"
                raise Fields({}).refuse(where, "needs tool_choice required, or this tool's name", "invalid_value")
        return Tools(_told(tools), form, not parallel)
    wanted = [tool for tool in tools if named in (None, tool["function"]["name"])]
    if not wanted:
        raise fields.refuse("tool_choice", f"there is no tool {named!r:.80}", "invalid_value")
    return Tools(_told(tools), form, True, _call_schema(fields, [tool["function"] for tool in wanted], form))


def _told(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in tool.items() if name != "strict"} for tool in tools]


def _choice(fields: Fields) -> tuple[str | None, str | None]:
    """What is chosen: a word, or "named" and the name."""
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict):
        inner = Fields(choice, "tool_choice")
        inner.only("type", "function")
        function = Fields(inner.need("function", dict), inner.name("function"))
        name = function.need("name", str)
        function.end()
        inner.end()
        return "named", name
    if choice not in (None, "none", "auto", "required"):
        raise fields.refuse("tool_choice", f"must be none, auto, required or a function, got {choice!r:.80}")
    return choice, None


def _call_schema(fields: Fields, functions: list[dict[str, Any]], form: Form) -> dict[str, Any]:
    """The schema of a call of one of some functions, as the model writes it.

    Each function's parameters are a definition of their own, under its name, where their references begin.
    """
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for function in functions:
        name, kind = function["name"], function["parameters"].get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            raise fields.refuse("tools", f"the parameters of {name} must be an object, got type {kind!r:.80}")
        place = f"#/$defs/{name}"
        definitions[name] = _begun_at(place, {**function["parameters"], "type": "object"})
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, form.key: {"$ref": place}},
                "required": ["name", form.key],
                "additionalProperties": False,
            }
        )
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema = {"type": "array", "items": call, "minItems": 1, "maxItems": 1} if form.listed else call
    return {**schema, "$defs": definitions}


def _begun_at(place: str, schema: Any) -> Any:
    """A schema that has become part of another, with its references to its own root changed to where that is now."""
    if isinstance(schema, list):
        return [_begun_at(place, each) for each in schema]
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):  # which is a root by itself
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.partition("/")[0] == "#":
            found[key] = place + value[1:]
        elif key in BY_NAME and isinstance(value, dict):
            found[key] = {name: _begun_at(place, each) for name, each in value.items()}
        else:
            found[key] = value if key in VALUES else _begun_at(place, value)
    return found
