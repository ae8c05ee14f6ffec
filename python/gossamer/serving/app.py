"""The ASGI application: which path is answered by what."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from . import chat, completions
from .embeddings import embeddings
from .engine_thread import EngineThread
from .errors import ApiError, JsonResponse
from .exchange import STOPPING, Asked, Exchange
from .guards import Guard, bounded, read_json
from .metrics import CONTENT_TYPE, Metrics
from .replies import EventStream, while_there
from .served import Registry
from .settings import Settings
from .speech import answer as transcribed
from .speech import read_speech

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_PAGE = Path(__file__).parent / "page"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclass
class State:
    """What all requests share.

    Attributes:
        settings: Limits.
        registry: The models.
        engine: Steps them.
        metrics: Counts.
        stopping: Whether no more requests are taken on.
    """

    settings: Settings
    registry: Registry
    engine: EngineThread
    metrics: Metrics
    stopping: bool = False

    @property
    def admitted(self) -> int:
        """Texts that have not ended."""
        return sum(served.admitted for served in self.registry)


Endpoint = Callable[[State, "Scope", "Receive", "Send"], Awaitable[None]]


def build(registry: Registry, settings: Settings) -> tuple[ASGIApp, State]:
    """Makes the application over loaded models, and what its requests share.

    The engine's thread has to be started in the event loop that serves.
    """
    engine = EngineThread(registry, settings.most, settings.retained)
    metrics = Metrics(registry, engine)
    state = State(settings, registry, engine, metrics)
    posts: dict[str, Endpoint] = {
        "/v1/embeddings": _embeddings,
        "/v1/audio/transcriptions": functools.partial(_speech, translate=False),
        "/v1/audio/translations": functools.partial(_speech, translate=True),
        "/v1/chat/completions": functools.partial(_generate, read=chat.read_chat, form=chat, prefix="chatcmpl"),
        "/v1/completions": functools.partial(
            _generate, read=completions.read_completion, form=completions, prefix="cmpl"
        ),
    }
    gets: dict[str, Callable[[State, Request], Response]] = {
        "/v1/models": _models,
        "/health": _health,
        "/ready": _ready,
        "/metrics": _metrics,
        "/": _page("index.html", "text/html"),
        "/page/chat.js": _page("chat.js", "text/javascript"),
        "/page/chat.css": _page("chat.css", "text/css"),
    }
    routes = [Route(path, _Post(state, endpoint), methods=["POST"]) for path, endpoint in posts.items()]
    routes += [Route(path, _get(state, answer), methods=["GET"]) for path, answer in gets.items()]
    routes.append(Route("/v1/models/{name:path}", _get(state, _one_model), methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers={404: _no_path, 405: _no_method, Exception: _bug})
    return Guard(app, settings, metrics, frozenset([*posts, *gets])), state


class _Post:
    """An endpoint that is an ASGI application of its own: it watches whether its client is still there."""

    def __init__(self, state: State, endpoint: Endpoint) -> None:
        self._state = state
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._state.stopping:
                raise ApiError(503, f"{STOPPING}; it takes no more requests", retry_after=10)
            await self._endpoint(self._state, scope, receive, send)
        except ApiError as error:
            scope["state"]["log"]["error"] = error.message
            response = error.response()
            if error.status in (408, 413):
                response.headers["connection"] = "close"  # what is left of the request is not read
            await response(scope, receive, send)


async def _generate(
    state: State,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    read: Callable[[Any, Registry, Settings], Any],
    form: Any,
    prefix: str,
) -> None:
    """Answers a request for texts."""
    request = read(await read_json(scope, receive, state.settings), state.registry, state.settings)
    log = scope["state"]["log"]
    if request.form.user:
        log["user"] = request.form.user
    asked: Asked = request.asked
    exchange = Exchange(asked, state.engine, state.settings, state.metrics, log, prefix)
    try:
        await while_there(receive, exchange.begin())
        if request.form.stream:
            log["stream"] = True
            events: AsyncIterator[dict[str, Any]] = form.chunks(request, exchange)
            await EventStream(events, exchange.close)(scope, receive, send)
            return
        answer = await while_there(receive, form.answer(request, exchange))
    finally:
        exchange.close()
    await JsonResponse(answer)(scope, receive, send)


async def _embeddings(state: State, scope: Scope, receive: Receive, send: Send) -> None:
    body = await read_json(scope, receive, state.settings)
    answer = await embeddings(body, state.registry, receive, scope["state"]["log"])
    await JsonResponse(answer)(scope, receive, send)


async def _speech(state: State, scope: Scope, receive: Receive, send: Send, *, translate: bool) -> None:
    limited = bounded(scope, receive, state.settings)
    asked = await read_speech(scope, limited, state.registry, state.settings, translate=translate)
    response = await transcribed(asked, receive, scope["state"]["log"])
    await response(scope, receive, send)


def _get(state: State, answer: Callable[[State, Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return answer(state, request)
        except ApiError as error:
            return error.response()

    return endpoint


def _models(state: State, _: Request) -> Response:
    return JsonResponse({"object": "list", "data": [state.registry.listed(name) for name in state.registry.names()]})


def _one_model(state: State, request: Request) -> Response:
    return JsonResponse(state.registry.listed(request.path_params["name"]))


def _health(state: State, _: Request) -> Response:
    """Whether the process does its work at all."""
    alive = state.engine.alive
    return JsonResponse({"status": "ok" if alive else "failed"}, 200 if alive else 500)


def _ready(state: State, _: Request) -> Response:
    """Whether a request would be taken on."""
    settings = state.settings
    if not state.engine.alive:
        return JsonResponse({"status": "failed"}, 503)
    full = all(served.admitted >= settings.most + settings.max_queue for served in state.registry)
    status = "stopping" if state.stopping else "full" if full else "ready"
    return JsonResponse({"status": status}, 200 if status == "ready" else 503)


def _metrics(state: State, _: Request) -> Response:
    return Response(state.metrics.write(), headers={"content-type": CONTENT_TYPE})


def _page(name: str, kind: str) -> Callable[[State, Request], Response]:
    def answer(_: State, __: Request) -> Response:
        return FileResponse(
            _PAGE / name, media_type=kind, headers={"content-security-policy": _POLICY, "cache-control": "no-cache"}
        )

    return answer


async def _no_path(request: Request, _: Exception) -> Response:
    return ApiError(404, f"there is nothing at {request.url.path[:200]}", code="unknown_url").response()


async def _no_method(request: Request, error: Exception) -> Response:
    response = ApiError(405, f"{request.method} is not for {request.url.path[:200]}").response()
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _bug(_: Request, error: Exception) -> Response:
    return ApiError(500, f"this is a bug in gossamer: {type(error).__name__}: {error}").response()
