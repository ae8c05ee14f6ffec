"""uvicorn's HTTP protocol with the time-outs that it lacks: nobody holds a connection without doing something."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from .errors import ApiError, to_json
from .settings import Settings

_FULL = ApiError(503, "there are too many connections; try again later")


def protocol(settings: Settings) -> type[H11Protocol]:
    """Returns a protocol class with a server's limits."""

    class Protocol(_Limited):
        limits = settings

    return Protocol


class _Limited(H11Protocol):
    """Closes connections that bring no whole head of a request, or do not take what is sent, in time."""

    limits: Settings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._extra = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request; one connection too many is told so."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # or what is left of an answer would be waited for without an end
        self._extra = len(self.connections) > self.limits.max_connections
        self._wait(1.0 if self._extra else self.limits.request_seconds)

    def data_received(self, data: bytes) -> None:
        """Reads on; while a request is answered there is no hurry, and its body has a limit of its own."""
        if self._extra:  # told now, and not at once: what was sent and not read would have the answer dropped
            body = to_json(_FULL.body())
            head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            self.transport.close()
            return
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # none before the first
        if cycle is not None and not cycle.response_complete:
            self._stop_waiting()
        else:
            self._wait(self.limits.request_seconds)

    def on_response_complete(self) -> None:
        """Waits for the rest of a request that came in part behind the one that is answered now."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._wait(self.limits.request_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begins to wait for the client to take what it was sent."""
        super().pause_writing()
        if self._writing is None:
            self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Goes on."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def _wait(self, seconds: float) -> None:
        """Has the connection closed unless a request's head is there in time; the time runs from its first part."""
        if self._reading is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(seconds, self.transport.abort)

    def _watch(self, size: int) -> None:
        """Has the connection closed where none of so many bytes has gone out in time."""

        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left < size:
                self._watch(left)
            else:
                self.transport.abort()

        self._writing = self.loop.call_later(self.limits.request_seconds, look)

    def _stop_waiting(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
