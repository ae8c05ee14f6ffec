"""Streams of events: what comes of them when their client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the [serve] extra is not installed")


async def ends_when_its_client_leaves(turns: int) -> bool:
    """Whether a stream ends whose client leaves some turns of the loop after an object came."""
    from gossamer.serving.replies import EventStream

    objects: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    left, closed = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await objects.get()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    stream = EventStream(endless(), closed.set)
    task = asyncio.ensure_future(stream({"state": {"log": {}}}, receive, send))
    for _ in range(20):  # until it waits
        await asyncio.sleep(0)
    objects.put_nowait({"text": "a"})
    for _ in range(turns):
        await asyncio.sleep(0)
    left.set()
    for _ in range(50):
        await asyncio.sleep(0)
    ended = task.done() and closed.is_set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return ended


def test_a_client_that_leaves_as_a_token_comes_is_noticed() -> None:
    assert [asyncio.run(ends_when_its_client_leaves(turns)) for turns in range(12)] == [True] * 12


def test_work_that_takes_too_long_is_cancelled() -> None:
    from gossamer.serving.replies import within

    async def main() -> bool:
        cancelled = False

        async def long() -> None:
            nonlocal cancelled
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise

        with pytest.raises(asyncio.TimeoutError):
            await within(0.001, long())
        await asyncio.sleep(0)
        assert await within(60, asyncio.sleep(0, "done")) == "done"
        return cancelled

    assert asyncio.run(main())
