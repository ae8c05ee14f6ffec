"""Texts held to schemas, expressions and grammars: every one is valid, whatever a model would rather write."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import gossamer
from fakes import fake_model
from gossamer.errors import GossamerError
from gossamer.generation.model import Model
from gossamer.generation.prompts import text_after
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import Scheduler
from tiny import tiny_llama

pytest.importorskip("llguidance")

TEXT = {"type": "string", "maxLength": 8}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
     "required": ["name", "age"], "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"enum": ["red", "green", 3, None]},
    {"type": "object", "properties": {"kind": {"const": "point"}, "at": {"type": "array", "items": {"type": "number",
     "minimum": -1, "maximum": 1, "multipleOf": 0.25}, "minItems": 2, "maxItems": 2}}, "required": ["kind", "at"],
     "additionalProperties": False},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}]},
    {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"],
     "additionalProperties": False},
    {"$defs": {"tree": {"type": "object", "properties": {"left": {"anyOf": [{"type": "null"}, {"type": "integer",
     "minimum": 0, "maximum": 9}]}}, "required": ["left"], "additionalProperties": False}},
     "type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
     "additionalProperties": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return gossamer.load(tiny_llama(tmp_path_factory.mktemp("grammar") / "m"), threads=1)


def finished(model: Model, **options: Any) -> str:
    """A text that came to its end."""
    text = model.generate("Say: ", chat=False, max_new_tokens=180, **options)
    assert model.last_stats is not None
    assert model.last_stats.finish == "eos"
    return text


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_drawn_texts_are_instances_of_their_schema(model: Model, number: int) -> None:
    schema = SCHEMAS[number]
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for seed in range(4):
        validator.validate(json.loads(finished(model, schema=schema, temperature=1.0, seed=seed)))
    validator.validate(json.loads(finished(model, schema=json.dumps(schema))))


BOUNDS: list[dict[str, Any]] = [
    {"exclusiveMinimum": 0, "maximum": 1}, {"exclusiveMinimum": 0.5, "exclusiveMaximum": 0.75},
    {"exclusiveMinimum": 0}, {"minimum": -1, "exclusiveMaximum": 0}, {"exclusiveMinimum": 1, "maximum": 9},
]  # fmt: skip


@pytest.mark.parametrize("bounds", BOUNDS)
def test_what_exclusive_bounds_leave_out_is_not_written(model: Model, bounds: dict[str, Any]) -> None:
    schema, written = {"type": "number", **bounds}, 0
    for text in ("0", "-0", "0.0", "1", "1.0", "0.5", "0.75", "0.6", "-1", "-1.0", "-0.5", "5"):
        constraint = model._grammars.constraint(gossamer.SamplingOptions(schema=json.dumps(schema)))
        assert constraint is not None
        tokens = model.tokenizer.encode(text)
        whole = constraint._matcher.try_consume_tokens(tokens) == len(tokens) and constraint._matcher.is_accepting()
        assert not whole or jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)), text
        written += whole
    assert written


def test_everything_is_an_instance_of_true(model: Model) -> None:
    json.loads(finished(model, schema="true", temperature=1.0, logit_bias={model.tokenizer.encode('"')[0]: 30.0}))


def test_whole_numbers_of_64_bits_have_their_bounds(model: Model) -> None:
    schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    jsonschema.Draft202012Validator(schema).validate(json.loads(finished(model, schema=schema, temperature=1.0)))


def test_many_at_once_are_what_each_is_alone(model: Model) -> None:
    asked = [schema for schema in SCHEMAS[:4] for _ in range(3)]
    options = {"temperature": 1.0, "max_new_tokens": 120, "seed": 5}
    alone = [model.completions("a" * i, 1, schema=schema, **options)[0].text for i, schema in enumerate(asked, 1)]
    from gossamer.generation.batch import Request, answers

    requests = [
        Request("a" * i, gossamer.SamplingOptions(schema=schema, **options)) for i, schema in enumerate(asked, 1)
    ]
    found = [answer.completion for answer in answers(model, requests, most=5)]
    assert [completion.text if completion else "" for completion in found] == alone


def test_tokens_that_have_to_follow_are_not_chosen_one_by_one(model: Model) -> None:
    steps: list[int] = []
    step = model.decoder.step

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(decoder, name)

        def step(self, batch: Any) -> Any:
            steps.extend(len(tokens) for _, tokens in batch)
            return step(batch)

    decoder, model.decoder = model.decoder, Counted()  # type: ignore[assignment]
    try:
        schema = {"type": "object", "properties": {"a_long_name": {"const": "and a long value"}},
                  "required": ["a_long_name"], "additionalProperties": False}  # fmt: skip
        text = finished(model, schema=schema, draft="off")
        assert text == '{"a_long_name": "and a long value"}'
        new = model.last_stats.new_tokens if model.last_stats else 0
        assert len(steps) == 1, "the first token is chosen after the prompt, and the others have to follow it"
        assert new > 20
        steps.clear()
        told = model.completions("Say: ", chat=False, max_new_tokens=180, schema=schema, logprobs=0, draft="off")[0]
        assert (told.text, len(told.logprobs), len(steps)) == (text, len(told.tokens), len(told.tokens))
    finally:
        model.decoder = decoder


@pytest.mark.parametrize("right", [True, False])
def test_drafts_and_what_has_to_follow_go_together(model: Model, right: bool) -> None:
    """Whatever is drafted, a text is what it is; right guesses reach over tokens that have to follow."""
    regex = "[ab]{6}, indeed, [ab]{6}, so it is, [ab]{6}!"
    options = gossamer.SamplingOptions(regex=regex, temperature=1.0, seed=2, max_new_tokens=90)

    def run(drafts: Any) -> list[int]:
        ids = model.tokenizer.encode("a")
        text = text_after(model, ids, options, 0, False)
        task = Task(text, model._new_sequence())
        scheduler = Scheduler(model.decoder, 1, drafts)
        scheduler.add(task)
        while not task.done:
            scheduler.step()
            held = task.held.tokens
            assert held == text.tokens[: len(held)]
            assert task.done or model.decoder.length(task.held.id) == len(held)
        assert task.error is None
        accepted.append(text.stats.steps.accepted)
        return text.tokens

    accepted: list[int] = []
    expected = run(None)

    class Knowing:
        cost = model.cost

        def drafter(self) -> Any:
            return object()

        def plan(self, texts: Any, drafters: Any, rooms: Any, sequences: Any) -> list[list[int]]:  # noqa: ARG002 - as drafts have it
            ((text,), (room,)) = texts, rooms
            guess = expected[len(text) : len(text) + min(7, room)]
            return [guess if right else [*guess[:2], *(5 for _ in guess[2:])]]

    assert run(Knowing()) == expected
    assert accepted[1] > 4
    assert model.decoder.kv_bytes == 0


@pytest.mark.parametrize("regex", ["[0-9]{4}-[0-9]{2}", "(yes|no)!?", "a{3,5}b"])
def test_a_regular_expression_is_matched_whole(model: Model, regex: str) -> None:
    for seed in range(5):
        assert re.fullmatch(regex, finished(model, regex=regex, temperature=2.0, seed=seed))


def test_a_grammar_is_kept_to(model: Model) -> None:
    grammar = 'start: pair ("," pair)?\npair: WORD "=" /[0-9]{1,2}/\nWORD: /[a-z]{2}/'
    for seed in range(5):
        text = finished(model, grammar=grammar, temperature=1.5, seed=seed)
        assert re.fullmatch(r"[a-z]{2}=[0-9]{1,2}(,[a-z]{2}=[0-9]{1,2})?", text)


def test_stop_strings_and_limits_end_a_text_before_its_grammar_does(model: Model) -> None:
    text = model.generate("a", regex="x{50}", max_new_tokens=3)
    assert model.last_stats is not None
    assert (set(text), model.last_stats.finish) == ({"x"}, "length")
    assert model.generate("a", regex="(ab){9}c", stop="bab", max_new_tokens=99) == "a"
    assert model.last_stats.finish == "stop"
    logits = model.logits(model.tokenizer.encode("a"))[-1]
    assert np.isfinite(logits).all(), "the model is as it was"


TOGETHER = 'schema: the bounds {"exclusiveMinimum": 0, "maximum": 0.5} cannot be held to: 0 would pass'
ABOVE, UP_TO = {"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.5}
APART: list[dict[str, Any]] = [
    {"allOf": [ABOVE, UP_TO]}, {**ABOVE, "allOf": [{"allOf": [UP_TO]}]}, {**ABOVE, "anyOf": [{"maximum": 9}, UP_TO]},
    {"oneOf": [{"type": "number", **UP_TO}, {"const": "a"}], "anyOf": [{"const": "a"}, ABOVE]},
    {"$ref": "#/$defs/a~1b", **UP_TO, "$defs": {"a/b": ABOVE}},
    {"$ref": "#up", **ABOVE, "$defs": {"it": {"$anchor": "up", **UP_TO}}},
    {"properties": {"x": ABOVE}, "allOf": [{"properties": {"x": UP_TO}}]},
    {"properties": {"x": ABOVE}, "allOf": [{"additionalProperties": UP_TO}]},
    {"patternProperties": {"^x": ABOVE}, "allOf": [{"properties": {"xy": UP_TO}}]},
    {"items": ABOVE, "allOf": [{"items": UP_TO}]}, {"prefixItems": [{}, ABOVE], "allOf": [{"items": UP_TO}]},
    {"$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}, "x": {"allOf": [UP_TO, ABOVE]}}}}, "$ref": "#/$defs/a"},
]  # fmt: skip


def test_bounds_that_do_not_meet_are_taken(model: Model) -> None:
    for schema in (
        {"properties": {"x": ABOVE, "y": UP_TO}}, {"anyOf": [ABOVE, {"type": "number", **UP_TO}]},
        {"prefixItems": [ABOVE, UP_TO]}, {"patternProperties": {"^x": ABOVE}, "allOf": [{"properties": {"yx": UP_TO}}]},
        {"type": "integer", "exclusiveMinimum": 0, "allOf": [{"maximum": 1.5}]},
        {"allOf": [ABOVE, {"maximum": 1}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}, "x": ABOVE}}}},
    ):  # fmt: skip
        assert model._grammars.constraint(gossamer.SamplingOptions(schema=json.dumps(schema))) is not None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"schema": {"type": "nonsense"}}, "schema: Invalid type: nonsense"),
        ({"schema": {"type": "array", "uniqueItems": True}}, 'schema: Unimplemented keys: ["uniqueItems"]'),
        ({"schema": "{"}, "schema: not valid JSON: "),
        ({"schema": "[1]"}, "schema must be a JSON object, got [1]"),
        ({"schema": "false"}, "schema must be a JSON object, got False"),
        (
            {"schema": {"type": "integer", "minimum": 10**19, "maximum": 10**19 + 5}},
            "schema: minimum 10000",
        ),
        ({"schema": {"anyOf": [{"type": "integer", "minimum": 2**53 + 1, "maximum": 2**54}]}}, "schema: minimum 9007"),
        (
            {"schema": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**53 + 3}},
            "schema: exclusiveMaximum 9007",
        ),
        (
            {"schema": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}}},
            'schema: the bounds {"exclusiveMinimum": 0, "maximum": 0.5} cannot be held to: 0 would pass',
        ),
        (
            {"schema": {"properties": {"default": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}}}},
            'schema: the bounds {"exclusiveMinimum": 0, "maximum": 0.5} cannot be held to: 0 would pass',
        ),
        (
            {"schema": {"type": ["number", "null"], "minimum": -0.5, "exclusiveMaximum": 0}},
            'schema: the bounds {"minimum": -0.5, "exclusiveMaximum": 0} cannot be held to: -0 would pass',
        ),
        *(({"schema": schema}, TOGETHER) for schema in APART),
        (
            {"schema": {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 0.5}},
            TOGETHER,
        ),
        (
            {"schema": {"$ref": "http://a/b", "$defs": {"a": {"$id": "http://a/b", "exclusiveMinimum": 0}}}},
            "schema: $ref 'http://a/b' is not in it",
        ),
        (
            {
                "schema": {
                    "exclusiveMinimum": 0,
                    "allOf": [{"anyOf": [{"title": f"{i}.{j}"} for j in range(21)]} for i in range(3)],
                }
            },
            "schema: what holds together in it is not found in 8192 steps",
        ),
        ({"schema": {"a": {1, 2}}}, "schema: not valid JSON: "),
        ({"regex": "("}, "regex: at 1(8): invalid regex"),
        ({"regex": 3}, "regex must be a text, got 3"),
        ({"grammar": 'start: "a" b'}, 'grammar: at 1(8): unknown name: "b"'),
        ({"regex": "a", "grammar": "start: /a/"}, "regex and grammar exclude each other"),
        ({"regex": "a", "beams": 2}, "beams and regex exclude each other"),
    ],
)
def test_what_cannot_be_kept_to_is_one_line(model: Model, options: Any, line: str) -> None:
    with pytest.raises(GossamerError) as error:
        model.stream("a", **options)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert model.decoder.kv_bytes == 0


def test_a_tokenizer_that_the_library_does_not_know_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fake_model()
    monkeypatch.setattr(type(other.tokenizer), "to_json", lambda _self: '{"decoder": 1}', raising=False)
    with pytest.raises(GossamerError, match="the tokenizer cannot be held to a grammar: "):
        other.stream("a", regex="a")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GossamerError, match=r"^regex needs llguidance: pip install 'gossamer\[grammar\]'$"):
        model.stream("a", regex="a")


def test_options_with_a_schema_are_json_and_can_be_compared() -> None:
    options = gossamer.SamplingOptions(schema={"type": "integer"})  # type: ignore[arg-type]
    assert options == gossamer.SamplingOptions(schema='{"type":"integer"}')
    assert json.loads(json.dumps(options.to_dict()))["schema"] == {"type": "integer"}
    assert options.changed(options.to_dict()) == options
    assert "held to a schema" in options.text()


def test_a_file_may_hold_it(model: Model, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.cli import main

    monkeypatch.setattr("gossamer.loading.load", lambda *_, **__: model)
    (tmp_path / "s.json").write_text('{"enum": [12345]}', encoding="utf-8")
    (tmp_path / "g.lark").write_text('start: "maybe"', encoding="utf-8")
    for line, text in (
        (f"--schema {tmp_path}/s.json", "12345"), ('--schema {"const":7}', "7"), ("--regex [q]{3}", "qqq"),
        (f"--grammar {tmp_path}/g.lark", "maybe"),
    ):  # fmt: skip
        assert main(["generate", "a", "--raw", *line.split()]) == 0
        assert capsys.readouterr().out == f"{text}\n"
    assert main(["generate", "a", "--schema", str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err == f"gossamer: error: {tmp_path}/none.json: No such file or directory\n"
