"""Replicas of a model under a load, played by SimPy: each steps as the scheduler does, and a step takes what it costs.

A router hands each text to the less loaded one of two replicas that it draws, as Ray Serve does. Texts share no
beginnings, nobody guesses tokens, and the cache of keys and values has room.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from gossamer.generation.cost import Table
from gossamer.generation.scheduler import MOST, STEP_TOKENS


@dataclass(frozen=True)
class Load:
    """Texts that come one by one, independently of one another.

    Attributes:
        rate: Texts a second.
        prompts: Tokens of prompts, each as likely as the others.
        answers: Tokens of answers, the same.
    """

    rate: float
    prompts: Sequence[int]
    answers: Sequence[int]

    @property
    def tokens(self) -> float:
        """Tokens a second that are asked for."""
        return self.rate * float(np.mean(self.answers))


@dataclass
class Text:
    """A text.

    Attributes:
        prompt: Tokens of it.
        answer: The same.
        came: When it was asked for.
        first: When its first token was there.
        ended: When its last one was.
    """

    prompt: int
    answer: int
    came: float
    first: float = math.nan
    ended: float = math.nan
    held: int = 0  # tokens that the engine has seen
    written: int = 0

    @property
    def pending(self) -> int:
        """Tokens that the engine has to see before the next one is chosen."""
        return self.prompt + self.written - self.held


@dataclass(frozen=True)
class Steps:
    """Seconds of steps, by the cost model's table.

    Attributes:
        table: Of one model on one machine.
        beside: What a step of so many texts takes beside the engine, for choosing, writing and sending tokens and for
            all that else runs on the machine then, by how many texts there are, rising: between them time changes
            evenly, and beyond them each text takes what it takes at the nearest.
    """

    table: Table
    beside: tuple[tuple[float, float], ...] = ()

    def seconds(self, counts: Sequence[int], contexts: Sequence[int]) -> float:
        """Returns what a step takes: so many tokens of each text, so many behind it."""
        table = self.table
        attention = sum(table.at(table.kv, n) * context for n, context in zip(counts, contexts, strict=True))
        return table.at(table.base, sum(counts)) + attention + self._beside(len(counts))

    def _beside(self, texts: int) -> float:
        if not self.beside:
            return 0.0
        numbers, seconds = zip(*self.beside, strict=True)
        nearest = min(max(texts, numbers[0]), numbers[-1])
        return float(np.interp(nearest, numbers, seconds)) * texts / nearest

    def more(self, texts: int) -> float:
        """Returns how much longer each step of texts that are being written takes than the one before."""
        return self.table.at(self.table.kv, 1) * texts


class Replica:
    """One machine: texts join and leave between steps."""

    def __init__(self, env: simpy.Environment, steps: Steps, most: int = MOST) -> None:
        self.waiting: deque[Text] = deque()
        self.active: list[Text] = []
        self._env = env
        self._steps = steps
        self._most = most
        self._came = env.event()
        env.process(self._run())

    @property
    def load(self) -> int:
        """Texts that it has."""
        return len(self.waiting) + len(self.active)

    def add(self, text: Text) -> None:
        """Queues a text."""
        self.waiting.append(text)
        if not self._came.triggered:
            self._came.succeed()

    def _run(self) -> Iterator[Any]:
        while True:
            if not self.load:
                yield self._arrival()
            while self.waiting and len(self.active) < self._most:
                self.active.append(self.waiting.popleft())
            if any(not text.written for text in self.active):
                yield from self._mixed()
            else:
                yield from self._written()

    def _arrival(self) -> simpy.Event:
        """What happens when the next text comes."""
        self._came = self._env.event()
        return self._came

    def _mixed(self) -> Iterator[Any]:
        """A step with parts of prompts."""
        room = max(STEP_TOKENS - sum(text.pending == 1 for text in self.active), 1)
        parts = []
        for text in self.active:
            count = text.pending
            if count > 1 and self._most > 1:
                count = min(count, room)
                room -= count
            if count:
                parts.append((text, count))
        yield self._env.timeout(self._steps.seconds([n for _, n in parts], [text.held for text, _ in parts]))
        for text, count in parts:
            text.held += count
            if not text.pending:
                self._token(text)

    def _written(self) -> Iterator[Any]:
        """Steps of texts that are all being written, up to the first that ends or the next that may join."""
        texts = len(self.active)
        most = min(text.answer - text.written for text in self.active)
        first, more = self._steps.seconds([1] * texts, [text.held for text in self.active]), self._steps.more(texts)
        begun, ends = self._env.now, self._env.timeout(_sum(first, more, most))
        if texts == self._most:
            yield ends
            steps = most
        else:
            yield ends | self._arrival()
            steps = most if ends.processed else _steps_until(first, more, self._env.now - begun, most)
            if steps == most:
                if not ends.processed:
                    yield ends
            else:
                yield self._env.timeout(max(begun + _sum(first, more, steps) - self._env.now, 0.0))
        for text in self.active[:]:
            text.held += steps
            text.written += steps - 1
            self._token(text)

    def _token(self, text: Text) -> None:
        """Gives a text one more token."""
        text.written += 1
        if text.written == 1:
            text.first = self._env.now
        if text.written >= text.answer:
            text.ended = self._env.now
            self.active.remove(text)


def _sum(first: float, more: float, steps: int) -> float:
    """Seconds of steps of which each takes a bit longer than the one before."""
    return steps * first + more * steps * (steps - 1) / 2


def _steps_until(first: float, more: float, seconds: float, most: int) -> int:
    """How many steps have begun after some seconds: those that run on before anybody joins."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if _sum(first, more, middle) >= seconds:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass
class Played:
    """What came of a load, without its beginning.

    Attributes:
        texts: That came after the beginning and ended.
        seconds: That these took, from when the first came to when the last one came.
        tokens: Written meanwhile, by whatever text.
    """

    texts: list[Text]
    seconds: float
    tokens: int
    replicas: int

    def latency(self, percent: float = 95.0) -> float:
        """Seconds from a text's arrival to its last token, that so many percent stay below."""
        return float(np.percentile([text.ended - text.came for text in self.texts], percent))

    def first_token(self, percent: float = 95.0) -> float:
        """The same to its first token."""
        return float(np.percentile([text.first - text.came for text in self.texts], percent))

    @property
    def tokens_per_second(self) -> float:
        """Of all replicas."""
        return self.tokens / self.seconds

    @property
    def machine_hours(self) -> float:
        """Hours of machines a million tokens."""
        return self.replicas / self.tokens_per_second * 1e6 / 3600


Came = tuple[float, int, int]
"""A text: the second at which it comes, tokens of its prompt, and of its answer."""


def arrivals(load: Load, texts: int, draw: random.Random) -> Iterator[Came]:
    """Draws texts that come."""
    at = 0.0
    for _ in range(texts):
        at += draw.expovariate(load.rate)
        yield at, draw.choice(load.prompts), draw.choice(load.answers)


def play(
    steps: Steps, load: Load, replicas: int, texts: int, *, most: int = MOST, seed: int = 0, warm: float = 0.2
) -> Played:
    """Plays a load.

    Args:
        steps: What steps of a replica take.
        load: What comes.
        replicas: How many there are.
        texts: That come in all.
        most: Texts that a replica writes at once.
        seed: Of arrivals, lengths and the router.
        warm: Part of the time before anything counts.
    """
    draw = random.Random(seed)
    return play_texts(steps, arrivals(load, texts, draw), replicas, most=most, draw=draw, warm=warm)


def play_texts(
    steps: Steps,
    coming: Iterable[Came],
    replicas: int,
    *,
    most: int = MOST,
    draw: random.Random | None = None,
    warm: float = 0.2,
) -> Played:
    """Plays texts that come at given times, in order; as `play`."""
    env = simpy.Environment()
    routed = draw or random.Random(0)
    all_replicas = [Replica(env, steps, most) for _ in range(replicas)]
    asked: list[Text] = []

    def come() -> Iterator[Any]:
        for at, prompt, answer in coming:
            yield env.timeout(max(at - env.now, 0.0))
            text = Text(prompt, answer, env.now)
            asked.append(text)
            pair = routed.sample(all_replicas, min(2, replicas))
            min(pair, key=lambda replica: replica.load).add(text)

    env.run(env.process(come()))
    begin, end = warm * env.now, env.now
    counted = [text for text in asked if text.came >= begin]
    for text in counted:
        while math.isnan(text.ended):
            env.step()
    return Played(counted, end - begin, _tokens_between(asked, begin, end), replicas)


def _tokens_between(texts: list[Text], begin: float, end: float) -> int:
    """Tokens written between two times, each text's evenly from its first to its last."""
    total = 0.0
    for text in texts:
        if text.answer == 1 or text.ended <= text.first:
            total += text.answer * (begin <= text.first < end)
            continue
        inside = max(min(text.ended, end) - max(text.first, begin), 0.0)
        total += text.answer * inside / (text.ended - text.first)
    return round(total)


def needed(steps: Steps, load: Load, latency: float, *, texts: int, seed: int = 0, limit: int = 1000) -> int | None:
    """Returns the fewest replicas with which 95 of 100 texts end in time; None where the limit's number does not do.

    Args:
        steps: What steps of a replica take.
        load: What comes.
        latency: Seconds that a text may take.
        texts: That are played, for each number of replicas; enough to fill what is fewer than is needed.
        seed: Of each.
        limit: Most replicas.
    """

    def enough(replicas: int) -> bool:
        return play(steps, load, replicas, max(texts, 40 * replicas), seed=seed).latency() <= latency

    high = 1
    while not enough(high):
        if high == limit:
            return None
        high = min(2 * high, limit)
    low = high // 2 + 1 if high > 1 else 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high
