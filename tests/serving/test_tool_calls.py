"""Calls of tools as models write them, in pieces of every size, and text that only looks like them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gossamer.serving.tool_calls import CallReader, ForcedReader, HermesReader, LlamaReader, MistralReader, form_of

PARIS = {"city": "Paris", "days": 2}
WEATHER = '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'
TIME = '{"name": "time", "arguments": {}}'
FORMS: dict[str, Any] = {
    "hermes": HermesReader,
    "llama": lambda: LlamaReader(["weather", "time"]),
    "mistral": MistralReader,
}


def read(reader: CallReader, text: str, size: int) -> tuple[str, list[tuple[str, Any]], list[str]]:
    """The text and the calls that a reader finds, and the calls' ids."""
    said, calls = "", []
    for at in range(0, len(text), size):
        piece, more = reader.push(text[at : at + size])
        said, calls = said + piece, calls + more
    piece, more = reader.flush()
    calls += more
    return said + piece, [(call.name, json.loads(call.arguments)) for call in calls], [call.id for call in calls]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>', "", 1),
        (
            "hermes",
            f"Let me see.\n<tool_call>{WEATHER}</tool_call>\n<tool_call>{TIME}</tool_call>\n",
            "Let me see.\n",
            2,
        ),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}', "", 1),
        ("hermes", "<tool_call>no JSON</tool_call> at all", "<tool_call>no JSON</tool_call> at all", 0),
        ("hermes", "a < b and <tool", "a < b and <tool", 0),
        ("hermes", '<tool_call>["weather"]</tool_call>', '<tool_call>["weather"]</tool_call>', 0),
        ("llama", '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}', "", 1),
        ("llama", '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris", "days": 2}}', "", 1),
        (
            "llama",
            '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}; {"name": "time", "parameters": {}}',
            "",
            2,
        ),
        ("llama", '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', 0),
        ("llama", '{"name": "time", "parameters": {}} I think', '{"name": "time", "parameters": {}} I think', 0),
        ("llama", "It is late.", "It is late.", 0),
        ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]', "", 1),
        (
            "mistral",
            f"I look. [TOOL_CALLS] [{WEATHER}, {TIME}]",
            "I look. ",
            2,
        ),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 2}', "", 1),
        ("mistral", '[TOOL_CALLS]weather{"city": "Paris", "days": 2}[TOOL_CALLS]time{}', "", 2),
        ("mistral", "[TOOL_CALLS]nothing", "[TOOL_CALLS]nothing", 0),
        ("mistral", "a list [1, 2", "a list [1, 2", 0),
    ],
)
def test_calls_are_read(form: str, text: str, said: str, calls: int, size: int) -> None:
    expected = [("weather", PARIS), ("time", {})][:calls]
    found, read_calls, ids = read(FORMS[form](), text, size)
    assert (found, read_calls) == (said, expected)
    assert len(set(ids)) == calls
    assert all(len(each) == 9 for each in ids) or form != "mistral"


def test_arguments_that_are_text_are_read() -> None:
    text = '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}</tool_call>'
    assert read(HermesReader(), text, 5)[1] == [("weather", PARIS)]


@pytest.mark.parametrize("form", FORMS)
def test_deep_nesting_is_text(form: str) -> None:
    text = {"hermes": "<tool_call>", "llama": "", "mistral": "[TOOL_CALLS]"}[form] + '{"name":' * 100_000
    assert read(FORMS[form](), text, 100_000)[:2] == (text, [])


@pytest.mark.parametrize(
    ("template", "kind", "opening"),
    [
        ("… <tool_call> …", HermesReader, "<tool_call>\n"),
        ("… [TOOL_CALLS] …", MistralReader, "[TOOL_CALLS]"),
        ("… <|python_tag|> …", LlamaReader, ""),
        ('… ipython … "parameters": …', LlamaReader, ""),
    ],
)
def test_the_template_says_which_form(template: str, kind: type, opening: str) -> None:
    form = form_of(template)
    assert form is not None
    assert isinstance(form.reader(["f"]), kind)
    assert form.opening == opening


def test_templates_without_a_known_form() -> None:
    assert form_of("… tools …") is None


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<tool_call>", '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'),
        ("<|python_tag|>", '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}'),
        ("[TOOL_CALLS]", '[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]'),
    ],
)
def test_forced_calls_are_read(template: str, text: str) -> None:
    form = form_of(template)
    assert form is not None
    assert read(ForcedReader(form), text, 4)[:2] == ("", [("weather", PARIS)])
    assert read(ForcedReader(form), text[:-9], 4)[:2] == (text[:-9], [])  # cut off by a limit
