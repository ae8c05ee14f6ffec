"""Tools: what the model is told, calls that it writes by itself, and calls that it has to write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from serving import TOOLS_TEMPLATE, Running, Saying, serving, tiny_model

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
ASKED: Any = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'
CONFIG: dict[str, Any] = {"max_position_embeddings": 2048}


def model_of(folder: Path, mark: str) -> Any:
    return tiny_model(folder, template=TOOLS_TEMPLATE.replace("MARK", mark), config=CONFIG)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("tools")
    marks = {"tiny": "<tool_call>", "llama": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}
    with serving({name: model_of(folder / name, mark) for name, mark in marks.items()}) as server:
        yield server


@pytest.fixture
def says(running: Running) -> Iterator[Callable[[str], None]]:
    """Makes the model say something."""
    engine = running.server.state.engine
    scheduler = next(scheduler for served, scheduler in engine._schedulers.items() if served.name == "tiny")
    before, drafts = scheduler._engine, scheduler._drafts

    def say(text: str) -> None:
        scheduler._engine, scheduler._drafts = Saying(running.models["tiny"], text), None

    yield say
    scheduler._engine, scheduler._drafts = before, drafts


def test_calls_that_a_model_writes(client: Any, says: Callable[[str], None]) -> None:
    says(f'Let me see.\n{CALL}\n<tool_call>{{"name": "clock", "arguments": {{}}}}</tool_call>')
    answer = client.chat.completions.create(model="tiny", messages=ASKED, tools=[WEATHER, CLOCK])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see.\n"
    calls = choice.message.tool_calls
    assert [(call.type, call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("function", "weather", {"city": "Rome", "days": 2}),
        ("function", "clock", {}),
    ]
    assert len({call.id for call in calls}) == 2


def test_calls_in_a_stream(client: Any, says: Callable[[str], None]) -> None:
    says(f"See: {CALL}")
    chunks = list(client.chat.completions.create(model="tiny", messages=ASKED, tools=[WEATHER], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "See: "
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.type, call.function.name) for call in calls] == [(0, "function", "weather")]
    assert json.loads(calls[0].function.arguments) == {"city": "Rome", "days": 2}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_one_call_ends_the_answer_where_more_are_not_wanted(client: Any, says: Callable[[str], None]) -> None:
    says(f"{CALL}{CALL}")
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, tools=[WEATHER], parallel_tool_calls=False, max_tokens=400
    )
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["weather"]
    assert answer.choices[0].message.content is None
    assert answer.choices[0].finish_reason == "tool_calls"


def test_text_stays_text(client: Any, says: Callable[[str], None]) -> None:
    says("It is <tool> late")
    answer = client.chat.completions.create(model="tiny", messages=ASKED, tools=[WEATHER])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It is <tool> late", "stop")
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize("model", ["tiny", "llama", "mistral"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_asked_for_fits_its_schema(client: Any, model: str, stream: bool) -> None:
    pytest.importorskip("llguidance")
    ask = {"model": model, "messages": ASKED, "tools": [CLOCK, WEATHER], "temperature": 1.5, "max_tokens": 200}
    choice = {"type": "function", "function": {"name": "weather"}}
    if stream:
        chunks = list(client.chat.completions.create(**ask, tool_choice=choice, stream=True))
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        finish = chunks[-1].choices[0].finish_reason
    else:
        answer = client.chat.completions.create(**ask, tool_choice=choice).choices[0]
        calls, finish = answer.message.tool_calls, answer.finish_reason
        assert answer.message.content is None
    assert finish == "tool_calls"
    assert [call.function.name for call in calls] == ["weather"]
    arguments = json.loads(calls[0].function.arguments)
    assert set(arguments) == {"city", "days"}
    assert arguments["city"] in ("Paris", "Rome")
    assert 1 <= arguments["days"] <= 9
    if model == "mistral":
        assert len(calls[0].id) == 9


def test_some_call_may_be_asked_for(client: Any) -> None:
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, tools=[CLOCK, WEATHER], tool_choice="required", max_tokens=300
    )
    assert answer.choices[0].message.tool_calls[0].function.name in ("clock", "weather")


FLAG = {"type": "boolean"}
PARAMETERS: dict[str, Any] = {
    "recursive": {"type": "object", "properties": {"name": FLAG, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
                  "required": ["name", "next"], "additionalProperties": False},
    "by place": {"type": "object", "properties": {"name": FLAG, "$ref": {"$ref": "#/properties/name"}},
                 "required": ["name", "$ref"], "additionalProperties": False},
    "definitions": {"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}, "y": {"$ref": "#/definitions/x"}},
                    "required": ["x", "y"], "additionalProperties": False,
                    "$defs": {"x": FLAG}, "definitions": {"x": {"const": {"$ref": "#"}}}},
    "others of that name": {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"z": FLAG}, "required": ["z"],
                                                                "additionalProperties": False}}},
    "no type": {"properties": {"x": FLAG}, "required": ["x"], "additionalProperties": False},
    "a type of two": {"type": ["null", "object"], "properties": {"x": FLAG}, "additionalProperties": False},
}  # fmt: skip


@pytest.mark.parametrize("model", ["tiny", "llama", "mistral"])
@pytest.mark.parametrize("case", PARAMETERS)
def test_a_call_fits_whatever_its_schema_refers_to(client: Any, model: str, case: str) -> None:
    pytest.importorskip("llguidance")
    named = {f"f{number}": parameters for number, parameters in enumerate(PARAMETERS.values())}
    tools = [{"type": "function", "function": {"name": name, "parameters": each}} for name, each in named.items()]
    name = f"f{list(PARAMETERS).index(case)}"
    for choice in ({"type": "function", "function": {"name": name}}, "required"):
        for seed in range(3):
            answer = client.chat.completions.create(
                model=model, messages=ASKED, tools=tools, tool_choice=choice, temperature=1.0, seed=seed, max_tokens=300
            ).choices[0]
            assert answer.finish_reason == "tool_calls"
            (call,) = answer.message.tool_calls
            assert choice == "required" or call.function.name == name
            schema = {**named[call.function.name], "type": "object"}
            jsonschema.Draft202012Validator(schema).validate(json.loads(call.function.arguments))


def test_answers_of_tools_go_into_the_template(running: Running, client: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages: Any = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Sun"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    tokenizer = running.models["tiny"].tokenizer
    called = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    expected = tokenizer.chat([*ASKED, {"role": "assistant", "tool_calls": [called]}, messages[2]])
    assert answer.usage.prompt_tokens == len(expected)
    assert '<tool_call>weather{"city": "Rome"}' in tokenizer.decode(expected)


def test_no_call_is_wanted(running: Running, client: Any, says: Callable[[str], None]) -> None:
    says(CALL)
    answer = client.chat.completions.create(model="tiny", messages=ASKED, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.content == CALL
    assert answer.usage.prompt_tokens == len(running.models["tiny"].tokenizer.chat(ASKED))  # it is not told of tools


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"tools": [{}]}, "tools[0].type", "missing"),
        ({"tools": [{"type": "web", "function": {}}]}, "tools[0].type", "must be 'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "must be 1 to 64"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name", "stands twice"),
        ({"tools": [CLOCK] * 129}, "tools", "there may be 128, got 129"),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice", "must be none, auto"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "no tool 'x'",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            "tools[0].function.strict",
            "needs tool_choice",
        ),
        (
            {"tools": [CLOCK], "response_format": {"type": "json_object"}},
            "response_format",
            "tools that may be called",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "odd"}}}],
                "tool_choice": "required",
            },
            "tools",
            "the parameters of f must be an object",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/$defs/none"}}}],
                "tool_choice": "required",
            },
            "tools",
            "schema",
        ),
    ],
)
def test_tools_are_refused_by_name(running: Running, more: Any, param: str, words: str) -> None:
    answer = running.chat("Hi", **more)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]
