"""The front: reads requests, has a replica answer them, and another where one dies before it has begun."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from starlette.responses import Response, StreamingResponse

from ..serving import logs
from ..serving.errors import ApiError, to_json
from ..serving.guards import read_body, refusal
from ..serving.replies import ClientGone

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from ..serving.settings import Settings
    from .replica import Begun, Headers

_log = logging.getLogger(logs.LOGGER)

ATTEMPTS = 4
"""Replicas that may die over one request."""

_DIED = (RayActorError, ReplicaUnavailableError)
_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "query_string", "headers", "client", "server")


class Front:
    """Passes requests on; each of them is bounded and refused here as `gossamer serve` does it."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        """Makes one.

        Args:
            replicas: Ray's handle of the replicas.
            settings: Limits.
        """
        logs.set_up()
        self._replicas = replicas.options(stream=True, method_name="answer")
        self._settings = settings

    async def __call__(self, request: Request) -> Response:
        """Answers a request."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")) or "/"
        scope = {name: request.scope[name] for name in _SCOPE if name in request.scope}
        scope |= {"path": path, "raw_path": path.encode(), "root_path": ""}
        try:
            refused = refusal(scope, self._settings)
            if refused is not None:
                raise refused
            if path == "/metrics":
                raise ApiError(404, "figures of replicas are among Ray's own, at its metrics' port", code="unknown_url")
            body = await read_body(scope, request.receive, self._settings)
            return await self._answer(scope, body)
        except ApiError as error:
            return error.response()
        except ClientGone:
            return Response(status_code=499)

    async def _answer(self, scope: dict[str, Any], body: bytes) -> Response:
        """Has a request answered by the first replica that lives to begin.

        Raises:
            ApiError: none does (503), or too many wait (429).
        """
        for _ in range(ATTEMPTS):
            stream = self._replicas.remote(scope, body)
            try:
                begun: Begun = await anext(stream)
            except BackPressureError:
                raise ApiError(
                    429, "all replicas are taken and too many requests wait", code="queue_full", retry_after=1
                ) from None
            except _DIED as error:
                _log.warning("a replica died", extra={"fields": {"path": scope["path"], "error": type(error).__name__}})
                continue
            response = _Passed(_rest(begun, stream), begun.status)
            response.raw_headers = list(begun.headers)
            return response
        raise ApiError(503, f"{ATTEMPTS} replicas died over this request", code="replica_died", retry_after=5)


class _Passed(StreamingResponse):
    """What comes from a replica; when nobody takes it any more, the replica is told at once.

    Of its own, a generator that is left between two parts ends when memory is next looked through.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await cast("AsyncGenerator[bytes]", self.body_iterator).aclose()


async def _rest(begun: Begun, stream: Any) -> AsyncGenerator[bytes]:
    """An answer's body as it comes; where the replica dies, a stream of events ends in one that says so."""
    ended = False
    try:
        if begun.body:
            yield begun.body
        async for part in stream:
            yield part
        ended = True
    except _DIED:
        ended = True
        _log.warning("a replica died while it wrote")
        if not _events(begun.headers):
            raise  # the connection is closed, short of the length that was said
        error = ApiError(503, "the replica that wrote this died; ask again", code="replica_died")
        yield b"data: " + to_json(error.body()) + b"\n\n"
    finally:
        if not ended:
            stream.cancel()


def _events(headers: Headers) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
