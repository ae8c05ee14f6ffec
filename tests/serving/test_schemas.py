"""Answers that are held to JSON, and schemas that nobody can be held to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from serving import Running, serving, tiny_model

pytest.importorskip("llguidance")
ASKED: Any = [{"role": "user", "content": "Describe a cat"}]


class Cat(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Tom", "Kit"]
    lives: Literal[7, 9]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving({"tiny": tiny_model(tmp_path_factory.mktemp("schemas") / "tiny")}) as server:
        yield server


def test_an_answer_is_an_instance_of_a_class(client: Any) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=ASKED, response_format=Cat, temperature=1.5, n=3)
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Cat)
        assert choice.finish_reason == "stop"
        assert json.loads(choice.message.content) == choice.message.parsed.model_dump()


def test_a_stream_is_held_to_a_schema(client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": Cat.model_json_schema(), "strict": True}}
    chunks = client.chat.completions.create(model="tiny", messages=ASKED, response_format=form, stream=True)
    Cat.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_any_object(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, response_format={"type": "json_object"}, max_tokens=6, temperature=1
    )
    assert answer.choices[0].message.content.startswith("{")


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
