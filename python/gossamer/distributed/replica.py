"""A replica: one model behind the server's application, asked by the front instead of over a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..loading import load
from ..serving import logs
from ..serving.app import build
from ..serving.served import Registry, Served

if TYPE_CHECKING:
    from starlette.types import Message

    from ..serving.settings import Settings
    from .options import Options

Headers = list[tuple[bytes, bytes]]


class Begun(NamedTuple):
    """The beginning of an answer.

    Attributes:
        status: Of the answer.
        headers: The same.
        body: What there is of it so far.
    """

    status: int
    headers: Headers
    body: bytes


class Replica:
    """Loads a model and answers requests."""

    def __init__(self, folder: str, name: str, options: Options, settings: Settings) -> None:
        """Loads the model.

        Args:
            folder: Packed.
            name: That clients write.
            options: What the application is built with.
            settings: Limits.

        Raises:
            GossamerError: the model or an adapter is not usable.
        """
        logs.set_up()
        self._registry = Registry()
        model = load(
            folder,
            threads=options.cpus,
            kv=options.kv,
            activations=options.activations,
            kv_limit=options.kv_bytes,
        )
        self._registry.add(Served(name, model, settings, options.draft))
        for own, path in options.adapters.items():
            model.adapters.load(path, own, weight=0)
            self._registry.add_adapter(own, self._registry.named(name), own)
        self._app, self._state = build(self._registry, settings)
        self._started = False
        self._under_way: set[asyncio.Task[None]] = set()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Begun | bytes]:
        """Answers a request.

        Args:
            scope: Of ASGI, as far as it can be sent.
            body: Of the request.

        Returns:
            First a `Begun`, with the first token where the answer is a stream, then more of its body.
        """
        if not self._started:
            self._started = True
            self._state.engine.start()
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        state: dict[str, Any] = {}
        task = asyncio.ensure_future(self._run({**scope, "state": state}, body, messages, gone))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        begun = False
        head: Message = {}
        held = b""
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    head = message
                    continue
                held += message.get("body", b"")
                # Nothing goes out before there is a token: until then somebody else may answer.
                if not begun and ("first_token_seconds" in state["log"] or not message.get("more_body")):
                    begun = True
                    yield Begun(head["status"], list(head["headers"]), held)
                    held = b""
                elif begun and held:
                    yield held
                    held = b""
            await task
        finally:
            gone.set()

    def check_health(self) -> None:
        """Raises where the thread that steps the model has died, so that Ray replaces the replica."""
        if self._started and not self._state.engine.alive:
            raise RuntimeError("the engine's thread has ended")

    async def _run(
        self, scope: dict[str, Any], body: bytes, messages: asyncio.Queue[Message | None], gone: asyncio.Event
    ) -> None:
        """Runs the application on a request until the answer's end, or until its client is gone."""
        unread = [body]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            messages.put_nowait(message)

        try:
            await self._app(scope, receive, send)
        finally:
            messages.put_nowait(None)
