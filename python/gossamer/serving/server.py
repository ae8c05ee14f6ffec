"""`serve`: the application on a socket until a signal ends it, after the texts that are being written."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ..errors import GossamerError
from .app import build
from .exchange import STOPPING
from .protocol import protocol

if TYPE_CHECKING:
    from .served import Registry
    from .settings import Settings

_log = logging.getLogger(__name__)

_LAST_WORDS = 5.0  # seconds for the step that runs, and for telling clients, once their time is over
_FILES = 256  # beside connections: those that are one too many, for a second, among them


def serve(registry: Registry, settings: Settings, ready: Callable[[str], None] | None = None) -> None:
    """Serves until SIGINT or SIGTERM; a second one ends it at once.

    Args:
        registry: The models.
        settings: Limits.
        ready: Called with the address once it listens.

    Raises:
        GossamerError: the address cannot be used.
    """
    with contextlib.closing(listen(settings)) as listener:
        Server(registry, settings, ready).run(sockets=[listener])


def listen(settings: Settings) -> socket.socket:
    """Returns a socket that listens where the settings say.

    Raises:
        GossamerError: the address cannot be used.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except OSError as error:
        raise GossamerError(f"cannot listen on {where}: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise GossamerError(f"cannot listen on {where}: {error.strerror or error}") from None
    return listener


def url(listener: socket.socket) -> str:
    """Returns the address of a socket as clients write it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server, which on a signal first lets texts end.

    Attributes:
        state: What all requests share.
    """

    def __init__(self, registry: Registry, settings: Settings, ready: Callable[[str], None] | None = None) -> None:
        app, self.state = build(registry, settings)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(settings),
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=max(round(settings.idle_seconds), 1),
                timeout_graceful_shutdown=5,
            )
        )
        self._ready = ready
        self._drain: asyncio.Task[None] | None = None
        _open_files(settings)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the engine's thread and listens."""
        self.state.engine.start()
        await super().startup(sockets)
        if sockets:
            _log.info("listening", extra={"fields": {"url": url(sockets[0]), "models": self.state.registry.names()}})
            if self._ready is not None:
                self._ready(url(sockets[0]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes connections, then ends the engine's thread."""
        await super().shutdown(sockets)
        self.state.engine.stop()
        _log.info("stopped")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as the base class has it
        """Begins to stop; at the second signal, stops."""
        if self.state.stopping:
            self.force_exit = self.should_exit = True
        else:
            _log.info("stopping", extra={"fields": {"signal": signal.Signals(sig).name, "texts": self.state.admitted}})
            self.stop()

    def stop(self) -> None:
        """Takes no more requests; the server ends when those that run have."""
        self.state.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Looks, every tenth of a second, whether to end."""
        if self.state.stopping and self._drain is None:
            self._drain = asyncio.ensure_future(self._drained())
        return await super().on_tick(counter)

    async def _drained(self) -> None:
        """Waits for the texts that run, within the time that they have, and ends the server."""
        if not await self._idle(self.state.settings.grace_seconds):
            _log.warning("texts did not end in time", extra={"fields": {"texts": self.state.admitted}})
            self.state.engine.abort(f"{STOPPING}: the text did not end in time")
            await self._idle(_LAST_WORDS)  # the step that runs ends first
        self.should_exit = True

    async def _idle(self, seconds: float) -> bool:
        """Waits so long at most for the texts that run; returns whether none is left."""
        end = time.monotonic() + seconds
        while self.state.admitted and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return not self.state.admitted


def _open_files(settings: Settings) -> None:
    """Has the system allow as many open files as there may be connections.

    Raises:
        GossamerError: it does not.
    """
    needed = settings.max_connections + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise GossamerError(
                f"{settings.max_connections} connections need {needed} open files, and the system allows {hard}; see "
                "--max-connections and ulimit -n"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
