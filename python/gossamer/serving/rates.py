"""`Rates`: tokens and bytes a second of a model's latest steps."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..generation.model import Model
    from ..generation.scheduled import Output

SECONDS = 10.0
"""Of the past that count."""


class _Step(NamedTuple):
    at: float
    seconds: float
    tokens: int
    read: int


class Rates:
    """What steps did in the last seconds. One thread adds, others may read."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()
        self.steps = 0

    def add(self, model: Model, seconds: float, tokens: int, outputs: list[Output]) -> None:
        """Notes a step: how long it took, and what it brought."""
        read = model.decoder.weight_bytes
        read += sum(model.decoder.kv_bytes_read(len(task.text.window)) for task, _ in outputs)
        now = time.monotonic()
        self._steps.append(_Step(now, seconds, tokens, read))
        self.steps += 1
        while self._steps and now - self._steps[0].at > SECONDS:
            self._steps.popleft()

    def latest(self) -> tuple[float, float, float]:
        """Returns tokens a second of the clock, bytes read a second of steps, and mean bytes a step; 0 where idle."""
        now = time.monotonic()
        steps = [step for step in tuple(self._steps) if now - step.at <= SECONDS]
        busy = sum(step.seconds for step in steps)
        if not steps or not busy:
            return 0.0, 0.0, 0.0
        clock = max(now - steps[0].at + steps[0].seconds, busy)
        read = sum(step.read for step in steps)
        return sum(step.tokens for step in steps) / clock, read / busy, read / len(steps)
