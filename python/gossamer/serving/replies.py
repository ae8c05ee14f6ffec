"""Answers over HTTP: whole ones and streams of events, both given up when their client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ApiError, to_json

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

T = TypeVar("T")

_QUIET = 15.0
"""Seconds without an event after which a comment is sent, so that nobody on the way gives the connection up."""


class ClientGone(Exception):
    """The client has left: nobody waits for the answer."""


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Runs work for so long at most.

    A caller that is cancelled ends. In `asyncio.wait_for` it goes on as if nothing had been asked, where the work ends
    in the same turn of the loop (before Python 3.12).

    Raises:
        asyncio.TimeoutError: it takes longer; it was cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,), timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        task.cancel()


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs work while the client is there.

    Raises:
        ClientGone: it left; the work was cancelled, and is over.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response of server-sent events, each a JSON object; an error becomes an event, and the last one."""

    def __init__(self, objects: AsyncIterator[dict[str, Any]], close: Callable[[], None]) -> None:
        """Makes a response.

        Args:
            objects: What to send.
            close: Called at the end, whatever comes.
        """
        self._objects = objects
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await while_there(receive, self._send(scope, send))
        finally:
            self._close()

    async def _send(self, scope: Scope, send: Send) -> None:
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        reader = asyncio.ensure_future(self._read(scope, lines))
        try:
            while line := await _next(lines):
                await send({"type": "http.response.body", "body": line, "more_body": True})
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self, scope: Scope, lines: asyncio.Queue[bytes]) -> None:
        """Writes objects as lines; an empty one is the end."""
        last = b"data: [DONE]\n\n"
        try:
            async for each in self._objects:
                lines.put_nowait(b"data: " + to_json(each) + b"\n\n")
        except ApiError as error:
            last = b"data: " + to_json(error.body()) + b"\n\n"
            scope["state"]["log"]["error"] = error.message
        except Exception as error:
            failed = ApiError(500, f"this is a bug in gossamer: {type(error).__name__}: {error}")
            last = b"data: " + to_json(failed.body()) + b"\n\n"
            scope["state"]["log"]["error"] = failed.message
        lines.put_nowait(last)
        lines.put_nowait(b"")


async def _next(lines: asyncio.Queue[bytes]) -> bytes:
    """The lines that there are, or a comment where there are none for long."""
    try:
        line = await within(_QUIET, lines.get())
    except asyncio.TimeoutError:
        return b": still here\n\n"
    parts = [line]
    while line and not lines.empty():
        if not (line := lines.get_nowait()):
            lines.put_nowait(line)  # the end, for the next call
            break
        parts.append(line)
    return b"".join(parts)
