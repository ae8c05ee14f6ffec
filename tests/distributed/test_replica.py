"""A replica without Ray: what it sends, when it begins to, and what is left when nobody wants it any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import gossamer
from gossamer.distributed.options import options
from gossamer.distributed.replica import Begun, Replica
from serving import tiny_model

OPTIONS = options({"model": "x", "threads": 1})
ASKED: dict[str, Any] = {"model": "tiny", "prompt": "The spider", "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replica")
    tiny_model(path / "tiny")
    gossamer.convert(path / "tiny", path / "packed")
    return path / "packed"


def asked(replica: Replica, body: bytes, **headers: str) -> AsyncIterator[Begun | bytes]:
    all_headers = {"host": "localhost", "content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()],
    }
    return replica.answer(scope, body)


def parts(folder: Path, body: dict[str, Any], **changed: Any) -> tuple[Begun, list[bytes]]:
    """What a new replica sends."""

    async def run() -> list[Begun | bytes]:
        replica = Replica(str(folder), "tiny", OPTIONS, OPTIONS.settings())
        found = [part async for part in asked(replica, json.dumps(body).encode(), **changed)]
        replica._state.engine.stop()
        return found

    begun, *rest = asyncio.run(run())
    assert isinstance(begun, Begun)
    assert all(isinstance(part, bytes) for part in rest)
    return begun, [part for part in rest if isinstance(part, bytes)]


def test_a_whole_answer_is_one_part(folder: Path) -> None:
    begun, rest = parts(folder, {**ASKED, "max_tokens": 8})
    assert (begun.status, rest) == (200, [])
    expected = gossamer.load(folder, threads=1).completions("The spider", max_new_tokens=8, temperature=0, chat=False)
    assert json.loads(begun.body)["choices"][0]["text"] == expected[0].text
    assert (b"content-length", str(len(begun.body)).encode()) in begun.headers


def test_a_stream_begins_with_its_first_token(folder: Path) -> None:
    begun, rest = parts(folder, {**ASKED, "max_tokens": 30, "stream": True})
    assert begun.status == 200
    first = begun.body.split(b"\n\n")[0]
    assert json.loads(first.removeprefix(b"data: "))["choices"][0]["text"]
    assert (begun.body + b"".join(rest)).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        ({**ASKED, "temprature": 1}, {}, 400, b"temprature"),
        (ASKED, {"host": "evil.example"}, 403, b"evil.example"),
        ({**ASKED, "model": "tony"}, {}, 404, b"did you mean tiny?"),
    ],
)
def test_refusals(folder: Path, body: dict[str, Any], headers: dict[str, str], status: int, words: bytes) -> None:
    begun, rest = parts(folder, body, **headers)
    assert (begun.status, rest) == (status, [])
    assert words in begun.body


def test_an_answer_that_nobody_wants_any_more_frees_its_pages(folder: Path) -> None:
    async def run() -> int:
        replica = Replica(str(folder), "tiny", OPTIONS, OPTIONS.settings())
        stream = asked(replica, json.dumps({**ASKED, "max_tokens": 400, "stream": True}).encode())
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        decoder = next(iter(replica._registry)).model.decoder
        for _ in range(200):
            if not decoder.kv_bytes and not replica._under_way:
                break
            await asyncio.sleep(0.01)
        replica._state.engine.stop()
        return decoder.kv_bytes + len(replica._under_way)

    assert asyncio.run(run()) == 0


def test_a_dead_engine_is_told(folder: Path) -> None:
    replica = Replica(str(folder), "tiny", OPTIONS, OPTIONS.settings())
    replica.check_health()

    async def run() -> None:
        async for _ in asked(replica, json.dumps({**ASKED, "max_tokens": 1}).encode()):
            pass
        replica._state.engine.stop()

    asyncio.run(run())
    with pytest.raises(RuntimeError, match="ended"):
        replica.check_health()
