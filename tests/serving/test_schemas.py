"""Answers that are held to JSON, and schemas that nobody can be held to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx2 as httpx
import pytest
from pydantic import BaseModel, ConfigDict

from serving import TOOLS_TEMPLATE, Running, serving, tiny_model

pytest.importorskip("llguidance")
MODELS = {"response_format": "tiny", "tools": "calling"}
ASKED: Any = [{"role": "user", "content": "Describe a cat"}]


class Cat(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Tom", "Kit"]
    lives: Literal[7, 9]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("schemas")
    calling = tiny_model(folder / "calling", template=TOOLS_TEMPLATE.replace("MARK", "<tool_call>"))
    with serving({"tiny": tiny_model(folder / "tiny"), "calling": calling}) as server:
        yield server


def test_an_answer_is_an_instance_of_a_class(client: Any) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=ASKED, response_format=Cat, temperature=1.5, n=3)
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Cat)
        assert choice.finish_reason == "stop"
        assert json.loads(choice.message.content) == choice.message.parsed.model_dump()


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_of_an_answer_that_a_schema_ends_has_its_logprob(client: Any, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": Cat.model_json_schema(), "strict": True}}
    options: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    found = client.chat.completions.create(
        model="tiny", messages=ASKED, response_format=form, logprobs=True, temperature=0, **options
    )
    parts = list(found) if stream else [found]
    told = [each for part in parts for choice in part.choices if choice.logprobs for each in choice.logprobs.content]
    text = b"".join(bytes(each.bytes) for each in told).decode()
    assert Cat.model_validate_json(text)
    assert len(told) == parts[-1].usage.completion_tokens


def test_a_stream_is_held_to_a_schema(client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": Cat.model_json_schema(), "strict": True}}
    chunks = client.chat.completions.create(model="tiny", messages=ASKED, response_format=form, stream=True)
    Cat.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_any_object(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, response_format={"type": "json_object"}, max_tokens=6, temperature=1
    )
    assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("param", ["response_format", "tools"])
def test_a_schema_with_a_number_that_json_has_not(running: Running, param: str) -> None:
    schema = '{"type": "object", "properties": {"lives": {"maximum": 1e999}}}'
    asked = {
        "response_format": f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {schema}}}}}',
        "tools": f'[{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}]',
    }[param]
    choice = ', "tool_choice": "required"' if param == "tools" else ""
    body = (
        f'{{"model": "{MODELS[param]}", "messages": [{{"role": "user", "content": "x"}}], "{param}": {asked}{choice}}}'
    )
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{running.base}/chat/completions", content=body, headers=headers, timeout=30)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert "schema" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("form", "param", "words"),
    [
        ({"type": "xml"}, "response_format.type", "must be text, json_object or json_schema"),
        ({"type": "json_schema"}, "response_format.json_schema", "missing"),
        ({"type": "json_schema", "json_schema": {"name": "a b"}}, "response_format.json_schema.name", "1 to 64"),
        ({"type": "json_object", "schema": {}}, "response_format.schema", "no such parameter"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}},
            "response_format",
            "schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/$defs/none"}}},
            "response_format",
            "schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": "{}"}},
            "response_format.json_schema.schema",
            "object",
        ),
    ],
)  # fmt: skip
def test_schemas_are_refused_by_name(running: Running, form: Any, param: str, words: str) -> None:
    answer = running.chat("Hi", response_format=form)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
