"""`/v1/embeddings`: vectors of texts, by a model that is an encoder."""

from __future__ import annotations

import base64
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import GossamerError
from ..generation.embedding import embed_tokens, tokens_of
from .errors import ApiError
from .fields import Fields
from .replies import while_there

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from starlette.types import Receive

    from .served import Registry, Served

_MOST = 2048  # texts of a request, as OpenAI has it


async def embeddings(body: Any, registry: Registry, receive: Receive, log: dict[str, Any]) -> dict[str, Any]:
    """Answers a request.

    Raises:
        ApiError: it is no good, or there is too much to do already.
    """
    fields = Fields(body)
    name = fields.need("model", str)
    served, adapters = registry.find(name)
    served.need("embeddings")
    texts = _texts(fields)
    form = fields.take("encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise fields.refuse("encoding_format", f"must be float or base64, got {form!r:.80}", "invalid_value")
    fields.only("dimensions", served.model.config.hidden)
    if user := fields.take("user", str):
        log["user"] = user[:512]
    fields.end()
    log["model"] = name
    served.admit(1)
    left = threading.Event()
    try:
        vectors, tokens = await while_there(receive, served.compute(partial(_embed, served, texts, adapters, left)))
    finally:
        left.set()
        served.release()
    log["prompt_tokens"] = tokens
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, form)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


class _Left(Exception):
    """Nobody waits for the vectors any more."""


def _embed(
    served: Served, texts: list[str], adapters: tuple[str, ...], left: threading.Event
) -> tuple[NDArray[np.float32], int]:
    def going(*_: object) -> None:
        if left.is_set():
            raise _Left

    try:
        going()
        tokens = tokens_of(served.model, texts)
        going()
        return embed_tokens(served.model, tokens, adapters=adapters, progress=going), sum(map(len, tokens))
    except GossamerError as error:
        raise ApiError(400, str(error), param="input", code="invalid_value") from None


def _texts(fields: Fields) -> list[str]:
    value = fields.raw("input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise fields.refuse("input", "must be a text or a list of texts; tokens are another model's", "invalid_type")
    if len(texts) > _MOST:
        raise fields.refuse("input", f"there may be {_MOST} texts, got {len(texts)}", "invalid_value")
    if not all(texts):
        raise fields.refuse("input", "a text must not be empty", "invalid_value")
    return texts


def _written(vector: NDArray[np.float32], form: str) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
