"""What a server does not do is refused by OpenAI's error object, which names the parameter; nothing is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from serving import Running, serving, tiny_model


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving({"tiny": tiny_model(tmp_path_factory.mktemp("refused") / "tiny")}) as server:
        yield server


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def test_a_prompt_that_the_cache_never_holds(tmp_path: Path) -> None:
    page = tiny_model(tmp_path / "free").decoder.kv_bytes_of(1, 1)
    with serving({"tiny": tiny_model(tmp_path / "tiny", kv_limit=2 * page)}) as server:
        ask: dict[str, Any] = {"model": "tiny", "max_tokens": 1}
        error = refused(server.post("completions", prompt=[5] * 128, **ask))
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
        words = f"the prompt has 128 tokens, and 129 tokens take {3 * page} bytes of keys and values, and kv_limit is"
        assert words in error["message"]
        assert server.post("completions", prompt=[5] * 127, **ask).status_code == 200


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("max_token", 3, "did you mean max_tokens?"),
        ("functions", [{}], "not supported"),
        ("audio", {"voice": "x"}, "not supported"),
        ("modalities", ["audio"], "it may be ['text']"),
        ("store", True, "it may be False"),
        ("metadata", {"a": "b"}, "it may be {}"),
        ("service_tier", "priority", "it may be 'auto' or 'default'"),
        ("reasoning_effort", "low", "not supported"),
        ("prediction", {"type": "content"}, "not supported"),
        ("web_search_options", {}, "not supported"),
        ("temperature", 3, "from 0 to 2"),
        ("temperature", "hot", "must be a number"),
        ("top_p", 1.5, "from 0 to 1"),
        ("n", 0, "from 1 to 16"),
        ("n", 17, "from 1 to 16"),
        ("n", True, "whole number"),
        ("max_tokens", 0, "from 1"),
        ("max_tokens", 1.5, "whole number"),
        ("stop", ["a", ""], "none empty"),
        ("stop", ["a"] * 17, "16 texts"),
        *(("stop", value, "a text or a list of texts") for value in ({}, 0, False, "")),
        ("stream", 1, "true or false"),
        ("seed", 1.5, "whole number"),
        ("user", "u" * 513, "512"),
        ("tool_choice", "auto", "no tools"),
        ("top_logprobs", 3, "needs logprobs: true"),
        ("top_logprobs", 21, "from 0 to 20"),
        ("presence_penalty", 2.5, "from -2 to 2"),
        ("logit_bias", {"x": 1}, "numbers from 0 to 319"),
        ("logit_bias", {"320": 1}, "numbers from 0 to 319"),
        ("logit_bias", {"3": 101}, "from -100 to 100"),
        ("logit_bias", {"3": 1, "03": 2}, "token 3 has two biases"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "no form of calling tools"),
    ],
)
def test_parameters_are_refused_by_name(running: Running, parameter: str, value: Any, words: str) -> None:
    error = refused(running.chat("Hello", **{parameter: value}))
    assert error["param"] == parameter
    assert error["message"].startswith(f"{parameter}: ")
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([], "messages", "one or more"),
        ("Hello", "messages", "a list"),
        ([3], "messages[0]", "a JSON object"),
        ([{"content": "x"}], "messages[0].role", "missing"),
        ([{"role": "narrator", "content": "x"}], "messages[0].role", "must be one of"),
        ([{"role": "user"}], "messages[0].content", "missing"),
        ([{"role": "user", "content": []}], "messages[0].content", "a text or a list of parts, got []"),
        ([{"role": "user", "content": 3}], "messages[0].content", "a text or a list"),
        ([{"role": "user", "content": "x", "colour": "red"}], "messages[0].colour", "no such parameter"),
        ([{"role": "user", "content": "x", "name": "Ada"}], "messages", "leaves the name 'Ada' out"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "missing"),
        (
            [{"role": "tool", "content": "x", "tool_call_id": "7"}],
            "messages[0].tool_call_id",
            "no call before it has the id '7'",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
            "text alone",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "a JSON object as text",
        ),
    ],
)
def test_messages_are_refused_by_their_part(running: Running, messages: Any, param: str, words: str) -> None:
    error = refused(running.post("chat/completions", model="tiny", messages=messages))
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("suffix", "end", "it may be ''"),
        ("best_of", 3, "it may be 1"),
        ("best_of", True, "it may be 1"),
        ("logprobs", 6, "from 0 to 5"),
        ("prompt", [], "must be a text"),
        ("prompt", [1, -1], "from 0 to 319"),
        ("prompt", [[1], [320]], "from 0 to 319"),
        ("prompt", "", "the prompt is empty"),
        ("messages", [], "no such parameter"),
        ("stream_options", {"include_usage": True}, "for streams alone"),
    ],
)
def test_completions_refuse_by_name(running: Running, parameter: str, value: Any, words: str) -> None:
    error = refused(running.post("completions", **{"model": "tiny", "prompt": "x", parameter: value}))
    assert error["param"] == parameter
    assert words in error["message"]


def test_what_asks_for_nothing_is_taken(running: Running) -> None:
    nothing = {
        "store": False,
        "metadata": None,
        "service_tier": "auto",
        "modalities": ["text"],
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "logprobs": False,
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "tool_choice": "none",
        "tools": [],
        "user": "somebody",
    }
    assert running.chat("Hello", max_tokens=1, **nothing).status_code == 200


def test_two_limits_that_differ_are_refused(running: Running) -> None:
    error = refused(running.chat("Hello", max_tokens=3, max_completion_tokens=4))
    assert error["param"] == "max_tokens"
    assert "give one of them" in error["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"\xff", "application/json", 400, "not valid JSON"),
        (b"[" * 100_000, "application/json", 400, "not valid JSON"),
        (b'{"n": 1, "n": 2}', "application/json", 400, "stands twice"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "application/json", 400, "nested more than 100 times"),
        (b'"text"', "application/json", 400, "must be a JSON object"),
        (b'{"model": "tiny", "n": ' + b"9" * 5000 + b"}", "application/json", 400, "not valid JSON"),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', "application/json", 400, "temperature"),
        (b"{}", "text/plain", 415, "application/json"),
        (b'{"model": 3}', "application/json", 400, "model: must be a text"),
        (b"{}", "application/json", 400, "model: is missing"),
        (b'{"model": "none"}', "application/json", 404, "does not exist"),
    ],
)  # fmt: skip
def test_bodies_that_are_none(running: Running, body: bytes, kind: str, status: int, words: str) -> None:
    answer = httpx.post(f"{running.base}/completions", content=body, headers={"content-type": kind}, timeout=30)
    assert words in refused(answer, status)["message"]


def test_more_messages_than_the_context_has_tokens(running: Running) -> None:
    messages = [{"role": "user", "content": "x"}] * 513
    error = refused(running.post("chat/completions", model="tiny", messages=messages))
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert "there are 513 messages, and the context holds 512 tokens" in error["message"]


def test_a_number_of_a_token_with_thousands_of_digits(running: Running) -> None:
    for token in ("0" * 12 + "1" * 5000, "0000000000009999999"):
        assert refused(running.chat("x", logit_bias={token: 1}))["param"] == "logit_bias"


def test_more_choices_than_there_is_room_for(tmp_path: Path) -> None:
    with serving({"tiny": tiny_model(tmp_path / "tiny")}, most=2, max_queue=1) as server:
        error = refused(server.chat("x", n=4))
        assert (error["param"], "from 1 to 3" in error["message"]) == ("n", True)
        assert server.chat("x", n=3, max_tokens=1).status_code == 200


def test_paths_and_methods_that_are_none(running: Running) -> None:
    assert refused(httpx.get(f"{running.base}/nothing"), 404)["code"] == "unknown_url"
    answer = httpx.get(f"{running.base}/chat/completions")
    assert "GET" in refused(answer, 405)["message"]
    assert answer.headers["allow"] == "POST"
