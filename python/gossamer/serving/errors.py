"""Errors as OpenAI's clients know them: a status, and an object that names the parameter at fault."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from ..errors import one_line

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: Of the answer.
        message: One line for people.
        param: The request's parameter that is at fault; None where none is.
        code: What programs compare; None where OpenAI has none.
        retry_after: Seconds after which to try again; None where that is no use.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Returns the object that a client gets."""
        type_ = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": type_, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Returns the answer."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JsonResponse(self.body(), self.status, headers)


class JsonResponse(Response):
    """A JSON object, written so that any text survives."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the bytes."""
        return to_json(content)


def to_json(content: Any) -> bytes:
    """Returns JSON as bytes; numbers that JSON does not know are errors."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
