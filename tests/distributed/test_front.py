"""The front over replicas that are made up: which of them is asked, and what the client gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from gossamer.distributed.options import options
from gossamer.distributed.replica import Begun

ray: Any = pytest.importorskip("ray")
pytest.importorskip("ray.serve")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray and what it stands on

SETTINGS = options({"model": "x"}).settings()
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
DIED = "died"


class Handle:
    """Ray's handle of replicas that answer by a script, a line each."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.asked: list[tuple[dict[str, Any], bytes]] = []
        self.cancelled = 0

    def options(self, **given: Any) -> Handle:
        assert given == {"stream": True, "method_name": "answer"}
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> Any:
        self.asked.append((scope, body))
        return Stream(self, self.scripts.pop(0))


class Stream:
    def __init__(self, handle: Handle, script: list[Any]) -> None:
        self.handle = handle
        self.parts = self._parts(script)

    async def _parts(self, script: list[Any]) -> AsyncIterator[Any]:
        for part in script:
            if part == DIED:
                raise ray.exceptions.ActorUnavailableError("the actor is gone", None)
            if isinstance(part, Exception):
                raise part
            yield part

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        return await anext(self.parts)  # type: ignore[call-overload]

    def cancel(self) -> None:
        self.handle.cancelled += 1


def asked(handle: Handle, body: bytes = b"{}", settings: Any = SETTINGS, **changed: Any) -> tuple[int, Any, bytes]:
    """Status, headers and body of what a client gets; a part of the body that fails is a line of its own."""
    from gossamer.distributed.front import Front

    async def run() -> tuple[int, Any, bytes]:
        unread = [body]

        async def receive() -> Any:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        headers = [(name.encode(), value.encode()) for name, value in changed.pop("headers", {}).items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/small/v1/completions",
            "root_path": "/small",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), *headers],
            "app": object(),  # of Ray's own, and not to be sent
            **changed,
        }
        response = await Front(handle, settings)(Request(scope, receive))
        parts = [response.body] if hasattr(response, "body") else []
        if hasattr(response, "body_iterator"):
            parts = [part async for part in response.body_iterator]
        return response.status_code, response.raw_headers, b"".join(parts)

    return asyncio.run(run())


def test_an_answer_is_passed_on_as_it_is() -> None:
    handle = Handle([Begun(201, [(b"x-a", b"1"), (b"x-a", b"2")], b"one"), b"two"])
    assert asked(handle, b"question") == (201, [(b"x-a", b"1"), (b"x-a", b"2")], b"onetwo")
    (scope, body), *_ = handle.asked
    assert (scope["path"], scope["root_path"], body) == ("/v1/completions", "", b"question")
    assert "app" not in scope
    assert handle.cancelled == 0


def test_what_has_not_begun_is_asked_of_another() -> None:
    handle = Handle([DIED], [DIED], [Begun(200, EVENTS, b"data: 1\n\n"), b"data: [DONE]\n\n"])
    status, _, body = asked(handle, b"question")
    assert (status, body) == (200, b"data: 1\n\ndata: [DONE]\n\n")
    assert [body for _, body in handle.asked] == [b"question"] * 3


def test_replicas_that_die_one_after_the_other_are_an_error() -> None:
    from gossamer.distributed.front import ATTEMPTS

    handle = Handle(*[[DIED]] * ATTEMPTS)
    status, headers, body = asked(handle)
    assert status == 503
    assert json.loads(body)["error"]["code"] == "replica_died"
    assert (b"retry-after", b"5") in headers
    assert not handle.scripts


def test_a_stream_that_has_begun_ends_in_an_error_event() -> None:
    handle = Handle([Begun(200, EVENTS, b"data: 1\n\n"), b"data: 2\n\n", DIED])
    status, _, body = asked(handle)
    first, second, last = body.removesuffix(b"\n\n").split(b"\n\n")
    assert (status, first, second) == (200, b"data: 1", b"data: 2")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("replica_died", "server_error")
    assert len(handle.asked) == 1


def test_another_kind_of_answer_that_breaks_off_is_no_whole_one() -> None:
    handle = Handle([Begun(200, [(b"content-type", b"application/json")], b"{"), DIED])
    with pytest.raises(ray.exceptions.RayActorError):
        asked(handle)


def test_a_full_queue_says_when_to_try_again() -> None:
    from ray.serve.exceptions import BackPressureError

    status, headers, body = asked(Handle([BackPressureError(5, 5)]))
    assert status == 429
    assert (b"retry-after", b"1") in headers
    assert json.loads(body)["error"]["code"] == "queue_full"


@pytest.mark.parametrize(
    ("changed", "settings", "status"),
    [
        ({"headers": {"content-length": "5000000"}}, SETTINGS, 413),
        ({"headers": {"origin": "http://evil.example"}}, SETTINGS, 403),
        ({}, replace(SETTINGS, api_keys=("key",)), 401),
        ({}, replace(SETTINGS, hosts=("elsewhere",)), 403),
        ({"path": "/small/metrics"}, SETTINGS, 404),
    ],
)
def test_what_is_refused_reaches_no_replica(changed: dict[str, Any], settings: Any, status: int) -> None:
    handle = Handle()
    assert asked(handle, settings=settings, **changed)[0] == status
    assert not handle.asked


def test_a_body_that_is_too_large_is_not_read_on() -> None:
    handle = Handle()
    assert asked(handle, b"x" * 100, replace(SETTINGS, max_body=99))[0] == 413
    assert not handle.asked
