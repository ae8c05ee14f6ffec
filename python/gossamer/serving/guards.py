"""What stands before every request: the log, whose request is answered, and how much of it is read."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from ..files import nested, parse_json
from .errors import ApiError
from .replies import ClientGone, within

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .metrics import Metrics
    from .settings import Settings

_DEEPEST = 100  # objects and lists of a body within one another: whoever reads them goes from one into the next
_log = logging.getLogger(__name__)

OPEN = ("/", "/health", "/ready", "/page/chat.js", "/page/chat.css", "/favicon.ico")
"""Paths that need no key."""

PROBES = ("/health", "/ready")
"""Paths that are answered under any name: whoever looks after servers asks by an address."""

SOUND = "/v1/audio/"
"""Paths whose bodies are files."""

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """An ASGI application around another: logs, counts, and refuses before anything of a body is read."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: frozenset[str]) -> None:
        """Makes one.

        Args:
            app: What answers.
            settings: The server's.
            metrics: Where requests are counted.
            paths: That there are; others are counted together.
        """
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        log: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = log
        request_id = secrets.token_hex(8)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*_HEADERS, (b"x-request-id", request_id.encode())]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        try:
            refused = refusal(scope, self._settings)
            if refused is None:
                await self._app(scope, receive, sending)
            else:
                log["error"] = refused.message
                response = refused.response()
                response.headers["connection"] = "close"  # what is left of the request is not read
                await response(scope, receive, sending)
        except ClientGone:
            log["error"] = "the client left"
            status = 499  # as nginx counts them
        finally:
            seconds = time.perf_counter() - start
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, status, seconds)
            client = scope.get("client")
            fields = {
                "request": request_id,
                "client": client[0] if client else "",
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "seconds": round(seconds, 4),
                **log,
            }
            _log.info("request", extra={"fields": fields})


def refusal(scope: Scope, settings: Settings) -> ApiError | None:
    """Returns why a request is not answered, by its head alone; None where it is."""
    headers = dict(scope["headers"])
    host = host_name(headers.get(b"host", b"").decode("latin-1"))
    if settings.hosts and host not in settings.hosts and scope["path"] not in PROBES:
        return ApiError(403, f"this server does not answer to the name {host!r:.80}; --allow-host adds one")
    origin = headers.get(b"origin", b"").decode("latin-1")
    if origin and origin.partition("://")[2].lower() != headers.get(b"host", b"").decode("latin-1").lower():
        return ApiError(403, f"this server answers no pages of others, as of {origin!r:.80}")
    if settings.api_keys and scope["path"] not in OPEN:
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
        if not any(hmac.compare_digest(given, key.encode()) for key in settings.api_keys):
            what = "the API key is wrong" if given else "an API key is needed: Authorization: Bearer KEY"
            return ApiError(401, what, code="invalid_api_key")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > (most := most_bytes(scope["path"], settings)):
        return too_large(most)
    return None


def host_name(header: str) -> str:
    """Returns the name in a Host header, in lower case, without port and brackets."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") < 2 else name


def most_bytes(path: str, settings: Settings) -> int:
    """Returns how large the body of a request may be."""
    return settings.max_sound if path.startswith(SOUND) else settings.max_body


def too_large(most: int) -> ApiError:
    """Returns the error for a body beyond a limit."""
    return ApiError(413, f"the request's body has more than {most} bytes", code="request_too_large")


def bounded(scope: Scope, receive: Receive, settings: Settings) -> Receive:
    """Returns what gives a body as far as the limits of bytes and seconds.

    It raises `ApiError` where the body is larger (413) or does not come (408), and `ClientGone` where its client left.
    """
    most, size = most_bytes(scope["path"], settings), 0
    end = time.monotonic() + settings.request_seconds

    async def limited() -> Message:
        nonlocal size
        try:
            message = await within(max(end - time.monotonic(), 0), receive())
        except asyncio.TimeoutError:
            raise ApiError(408, f"the request did not come within {settings.request_seconds:g} seconds") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        size += len(message.get("body", b""))
        if size > most:
            raise too_large(most)
        return message

    return limited


async def read_json(scope: Scope, receive: Receive, settings: Settings) -> Any:
    """Reads a body that is JSON.

    Raises:
        ApiError: it is none, says that it is something else (415), or as `bounded`.
        ClientGone: the client left.
    """
    kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":  # which a page of somebody else cannot send without being asked whether it may
        raise ApiError(415, "the request's content type must be application/json")
    body = await read_body(scope, receive, settings)
    try:
        value = parse_json(body.decode())
    except ValueError as error:
        raise ApiError(400, f"the request's body is not valid JSON: {error}", code="invalid_json") from None
    if body.count(b"[") + body.count(b"{") > _DEEPEST and nested(value, _DEEPEST):
        raise ApiError(400, f"the request's body is nested more than {_DEEPEST} times", code="invalid_json")
    return value


async def read_body(scope: Scope, receive: Receive, settings: Settings) -> bytes:
    """Reads a body; raises as `bounded`."""
    limited, parts, more = bounded(scope, receive, settings), [], True
    while more:
        message = await limited()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)
