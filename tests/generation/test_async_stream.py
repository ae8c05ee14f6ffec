"""Streams in an event loop: the same pieces, side by side, and nothing left behind by those who leave."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fakes import decoder_of, fake_model
from gossamer.errors import GossamerError


def slowed(model: Any, seconds: float) -> Any:
    step = model.decoder.step

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return step(*args, **options)

    model.decoder.step = slow
    return model


def test_pieces_are_those_of_a_stream() -> None:
    model = fake_model()

    async def run() -> list[str]:
        return [piece async for piece in model.astream("ab", max_new_tokens=4)]

    assert asyncio.run(run()) == list(model.stream("ab", max_new_tokens=4)) == ["c", "d", "e", "f"]
    assert decoder_of(model).held == {}


def test_several_run_side_by_side_and_the_loop_goes_on() -> None:
    model = slowed(fake_model(), 0.01)

    async def run() -> tuple[list[str], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        async def text(prompt: str) -> str:
            return "".join([piece async for piece in model.astream(prompt, max_new_tokens=5)])

        ticking = asyncio.create_task(tick())
        texts = await asyncio.gather(text("a"), text("bc"))
        ticking.cancel()
        return list(texts), ticks

    texts, ticks = asyncio.run(run())
    assert texts == ["bcdef", "defgh"]
    assert ticks > 2


@pytest.mark.parametrize("how", ["cancel", "aclose", "callback"])
def test_who_leaves_ends_the_text(how: str) -> None:
    model = slowed(fake_model(), 0.005)
    seen: list[str] = []

    async def run() -> None:
        pieces = model.astream("a", max_new_tokens=500, cancel=lambda: how == "callback" and len(seen) == 3)

        async def read() -> None:
            async for piece in pieces:
                seen.append(piece)
                if len(seen) == 3 and how == "aclose":
                    break
            await pieces.aclose()

        reading = asyncio.create_task(read())
        while len(seen) < 3:
            await asyncio.sleep(0.001)
        if how == "cancel":
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        else:
            await reading

    asyncio.run(run())
    assert 3 <= len(seen) <= 5
    assert decoder_of(model).held == {}
    assert model.last_stats is not None
    assert model.last_stats.finish == "closed"


def test_errors_come_up_as_in_a_stream() -> None:
    model = fake_model()
    with pytest.raises(GossamerError, match="the prompt is empty"):
        model.astream("")
    with pytest.raises(TypeError, match="there is no option colour"):
        model.astream("a", colour=1)
    decoder_of(model).fail_at = (2, RuntimeError("broken"))

    async def run() -> None:
        async for _ in model.astream("a"):
            pass

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(run())
    assert decoder_of(model).held == {}
