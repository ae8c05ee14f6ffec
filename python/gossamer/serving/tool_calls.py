"""Calls of tools that a model writes into its text, read out of it: forms of Hermes and Qwen, Llama 3, Mistral."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_SPACE = " \t\r\n"
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: Of the tool.
        arguments: JSON, as OpenAI's clients expect it.
        id: By which the answer to it is known.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def to_dict(self) -> dict[str, Any]:
        """Returns OpenAI's object."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallReader(Protocol):
    """Takes a text in pieces and gives what of it is text, and the calls."""

    def push(self, piece: str) -> tuple[str, list[Call]]:
        """Takes the next piece; what may yet become a call is held back."""

    def flush(self) -> tuple[str, list[Call]]:
        """Ends the text and gives the rest; what is no call after all is text."""


class HermesReader:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them: Hermes, Qwen 2.5 and 3, SmolLM 3.

    Source: the chat templates of these models.
    """

    begin, end = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._held = ""
        self._called = False

    def push(self, piece: str) -> tuple[str, list[Call]]:
        """Takes the next piece."""
        self._held += piece
        text = ""
        calls: list[Call] = []
        while True:
            before, mark, rest = self._held.partition(self.begin)
            if not mark:
                keep = _overlap(self._held, self.begin)
                text += self._plain(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                return text, calls
            inside, closed, after = rest.partition(self.end)
            text += self._plain(before)
            self._held = self._held[len(before) :]
            if not closed:
                return text, calls
            call = _call(inside, ("arguments", "parameters"))
            if call is None:
                text += self.begin + inside + self.end
            else:
                calls.append(call)
                self._called = True
            self._held = after

    def flush(self) -> tuple[str, list[Call]]:
        """Ends the text; a call that lacks its last mark counts."""
        rest, self._held = self._held, ""
        call = _call(rest.removeprefix(self.begin), ("arguments",)) if rest.startswith(self.begin) else None
        return ("", [call]) if call else (self._plain(rest), [])

    def _plain(self, text: str) -> str:
        """Text beside calls; blanks between them are no text."""
        return "" if self._called and not text.strip() else text


class LlamaReader:
    """An answer that is nothing but `{"name": …, "parameters": {…}}`, or several with semicolons between: Llama 3.

    It may begin with `<|python_tag|>`. Since nothing else marks a call, its name must be that of a tool.
    Source: the chat templates of Llama 3.1 and 3.2.
    """

    begin = "<|python_tag|>"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held = ""
        self._text = False  # whether the answer has turned out to be text

    def push(self, piece: str) -> tuple[str, list[Call]]:
        """Takes the next piece."""
        if self._text:
            return piece, []
        self._held += piece
        start = self._held.lstrip(_SPACE)
        if start.startswith(("{", self.begin)) or self.begin.startswith(start):
            return "", []
        self._text = True
        text, self._held = self._held, ""
        return text, []

    def flush(self) -> tuple[str, list[Call]]:
        """Ends the text."""
        text, self._held = self._held, ""
        calls = self._calls(text.strip(_SPACE).removeprefix(self.begin))
        return ("", calls) if calls else (text, [])

    def _calls(self, text: str) -> list[Call]:
        """The calls that a text consists of; none where anything else is in it."""
        calls, at, decoder = [], 0, json.JSONDecoder()
        while at < len(text):
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                return []
            call = _to_call(value, ("parameters", "arguments"))
            if call is None or call.name not in self._names:
                return []
            calls.append(call)
            while at < len(text) and text[at] in "; \t\r\n":
                at += 1
        return calls


class MistralReader:
    """`[TOOL_CALLS]` and a list of `{"name": …, "arguments": {…}}`, or names with `[ARGS]{…}` each: Mistral.

    Source: the chat templates and tokenizers of Mistral 7B v0.3 and later.
    """

    begin, arguments = "[TOOL_CALLS]", "[ARGS]"

    def __init__(self) -> None:
        self._held = ""
        self._calls = False

    def push(self, piece: str) -> tuple[str, list[Call]]:
        """Takes the next piece."""
        self._held += piece
        if self._calls:
            return "", []
        before, mark, rest = self._held.partition(self.begin)
        if mark:
            self._calls, self._held = True, rest
            return before, []
        keep = _overlap(self._held, self.begin)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text, []

    def flush(self) -> tuple[str, list[Call]]:
        """Ends the text."""
        rest, self._held = self._held, ""
        if not self._calls:
            return rest, []
        calls = self._listed(rest) or self._named(rest)
        return ("", calls) if calls else (self.begin + rest, [])

    def _listed(self, text: str) -> list[Call]:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return []
        calls = [
            _to_call(value, ("arguments",), _mistral_id())
            for value in (values if isinstance(values, list) else [values])
        ]
        return [call for call in calls if call] if all(calls) else []

    def _named(self, text: str) -> list[Call]:
        calls, decoder = [], json.JSONDecoder()
        for part in text.split(self.begin):
            match = re.match(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*", part)
            if match is None:
                return []
            try:
                value, at = decoder.raw_decode(part, match.end())
            except (ValueError, RecursionError):
                return []
            if not isinstance(value, dict) or part[at:].strip():
                return []
            calls.append(Call(match[1], _write(value), _mistral_id()))
        return calls


@dataclass(frozen=True)
class Form:
    """How a family of models writes calls.

    Attributes:
        reader: Makes what reads them, given the tools' names.
        key: Of the arguments.
        opening: What stands before the first call.
        listed: Whether calls stand in a list.
        short_ids: Whether the template takes ids of nine letters and digits alone.
    """

    reader: Callable[[Sequence[str]], CallReader]
    key: str
    opening: str
    listed: bool = False
    short_ids: bool = False


_HERMES = Form(lambda _: HermesReader(), "arguments", HermesReader.begin + "\n")
_LLAMA = Form(LlamaReader, "parameters", "")
_MISTRAL = Form(lambda _: MistralReader(), "arguments", MistralReader.begin, listed=True, short_ids=True)


def form_of(template: str) -> Form | None:
    """Returns how calls are written where a chat template is used; None where that is not known.

    Args:
        template: The model's; it names the marks, since it has to write earlier calls.
    """
    if HermesReader.begin in template:
        return _HERMES
    if MistralReader.begin in template:
        return _MISTRAL
    if LlamaReader.begin in template or ("ipython" in template and '"parameters"' in template):
        return _LLAMA
    return None


class ForcedReader:
    """An answer that is the JSON of one call, since it was held to that."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._held = ""

    def push(self, piece: str) -> tuple[str, list[Call]]:
        """Takes the next piece."""
        self._held += piece
        return "", []

    def flush(self) -> tuple[str, list[Call]]:
        """Ends the text; what was cut off is text."""
        text, self._held = self._held, ""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text, []
        if self._form.listed and isinstance(value, list) and value:
            value = value[0]
        call = _to_call(value, (self._form.key,), _mistral_id() if self._form.short_ids else "")
        return ("", [call]) if call else (text, [])


def _call(text: str, keys: tuple[str, ...]) -> Call | None:
    try:
        return _to_call(json.loads(text), keys)
    except (ValueError, RecursionError):
        return None


def _to_call(value: Any, keys: tuple[str, ...], id_: str = "") -> Call | None:
    """A call; None where a value is none."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    given = [value[key] for key in keys if key in value]
    arguments = given[0] if given else {}
    if isinstance(arguments, str):  # which some models write in quotes
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    written = _write(arguments)
    return Call(value["name"], written, id_) if id_ else Call(value["name"], written)


def _write(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _mistral_id() -> str:
    """Nine letters and digits: Mistral's templates refuse all others."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that begins a mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
