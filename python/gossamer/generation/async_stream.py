"""Streams for programs that run an event loop: steps are taken in a thread, pieces come to the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..text.messages import Message
    from .model import Model
    from .sampling_options import SamplingOptions
    from .single import Cancel, Pieces

AsyncPieces = AsyncGenerator[str, None]


def async_stream(
    model: Model,
    prompt: str | Sequence[Message],
    sampling: SamplingOptions | None,
    cancel: Cancel,
    options: dict[str, Any],
) -> AsyncPieces:
    """Returns what `Model.stream` would give; see `Model.astream`."""
    left = False

    def ends() -> bool:
        return left or (cancel is not None and cancel())

    pieces = model.stream(prompt, sampling, cancel=ends, **options)

    async def give() -> AsyncPieces:
        nonlocal left
        step: asyncio.Future[str | None] | None = None
        try:
            while True:
                step = asyncio.get_running_loop().run_in_executor(None, _next, pieces)
                if (piece := await asyncio.shield(step)) is None:
                    return
                yield piece
        finally:
            left = True
            if step is not None and not step.done():  # a thread is inside of it, for a step at most
                await asyncio.wait([step])
            pieces.close()

    return give()


def _next(pieces: Pieces) -> str | None:
    return next(pieces, None)
