"""What a step costs: seconds for some tokens of some texts at the contexts that they have, split into what takes them.

Three sources, each better than the one before. An estimate from bytes, bandwidth and kernels' rates, as `roofline` has
them or as is usual. A measurement of this model on this machine, in seconds, which is kept. And steps as they run: how
much longer they take than predicted is followed for each number of tokens, since a machine is not always as idle as
when it was measured.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _core
from ..formats import INTEGER_TYPES
from ..machine import roofline
from ..packing.planner import UNHIDDEN, usual_machine

if TYPE_CHECKING:
    from ..engine import Engine

MOST = 16
"""Tokens of the largest step that is measured; beyond it, each costs what the last ones did."""

_MORE = {"amx": 0.03}  # what a further token adds to a step of one, by tier, where nothing was measured
_MORE_OTHERWISE, _MORE_FLOATS = 0.14, 0.3
_LATEST = 0.1  # weight of the latest step among those that ran
_SPREAD = 8  # after so many steps of a size they tell of other sizes again
_FORGET = 0.08  # of what is known of other sizes, each time
_OUTLIER = 1.5  # a step that takes so many times as long as steps of late says little about the next


class Seconds(NamedTuple):
    """Seconds of a step by what takes them.

    Attributes:
        weights: Reading the weights once, at the speed that this machine reads memory or cache.
        kv: Attention over keys and values, which grows with context.
        rest: What remains: arithmetic that reading does not hide, norms, threads that wait, calls.
    """

    weights: float
    kv: float
    rest: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.kv + self.rest


@dataclass(frozen=True)
class Table:
    """Steps of one text, by tokens.

    Attributes:
        tokens: Numbers of tokens, rising from 1.
        base: Seconds of a step of so many, without context.
        kv: Seconds that each token of context adds, while every layer sees it.
        weights: Seconds of `base` that are reading weights.
        measured: Whether it was measured; otherwise it is an estimate.
    """

    tokens: tuple[int, ...]
    base: tuple[float, ...]
    kv: tuple[float, ...]
    weights: float
    measured: bool

    def at(self, values: Sequence[float], tokens: int) -> float:
        """Returns one of its rows at some number of tokens: evenly between those it has, and on beyond them."""
        place = bisect_left(self.tokens, tokens)
        if place < len(self.tokens) and self.tokens[place] == tokens:
            return values[place]
        place = min(place, len(self.tokens) - 1)
        low, high = self.tokens[place - 1], self.tokens[place]
        return values[place - 1] + (values[place] - values[place - 1]) * (tokens - low) / (high - low)


class StepCost:
    """Predicts steps of one model, and follows how they go.

    Attributes:
        table: What is known of it.
        reads: Tokens of so many of context whose keys and values are read; what half of the layers read is half of one.
    """

    def __init__(self, table: Table, reads: Callable[[int], float] = float) -> None:
        self.reads = reads
        self.adopt(table)

    def adopt(self, table: Table) -> None:
        """Begins anew with another table."""
        self.table = table
        self._base = [0.0, *(table.at(table.base, n) for n in range(1, MOST + 1))]
        self._kv = [0.0, *(table.at(table.kv, n) for n in range(1, MOST + 1))]
        self._level: list[float] = [1.0] * (MOST + 1)  # of steps as they ran, over what the table says
        self._seen = [0] * (MOST + 1)

    def predict(self, counts: Sequence[int], contexts: Sequence[int]) -> Seconds:
        """Returns what the table says of a step.

        Args:
            counts: Tokens of each text in it.
            contexts: Tokens that each text has behind it.
        """
        base = self._of(self._base, self.table.base, sum(counts))
        weights = min(self.table.weights, base)
        return Seconds(weights, self._attention(counts, contexts), base - weights)

    def seconds(self, counts: Sequence[int], contexts: Sequence[int]) -> float:
        """Returns what a step takes by all that is known, steps of late included."""
        tokens = sum(counts)
        base = self._of(self._base, self.table.base, tokens)
        return (base + self._attention(counts, contexts)) * self._level[min(tokens, MOST)]

    def observe(self, counts: Sequence[int], contexts: Sequence[int], seconds: float) -> None:
        """Notes what a step took."""
        tokens = min(sum(counts), MOST)
        predicted = self._of(self._base, self.table.base, sum(counts)) + self._attention(counts, contexts)
        level, seen = self._level[tokens], self._seen[tokens]
        ratio = min(max(seconds / predicted, level / _OUTLIER), level * _OUTLIER)
        level += max(_LATEST, 1 / (2 + seen)) * (ratio - level)
        self._level[tokens], self._seen[tokens] = level, seen + 1
        if seen >= _SPREAD and seen % _SPREAD:
            return
        nearest = level
        for n in range(tokens + 1, MOST + 1):
            if not self._seen[n]:  # then it should be as far off as the nearest below
                self._level[n] = nearest
            nearest = self._level[n]
        for n in range(1, MOST + 1):  # what steps took that run no longer is forgotten by and by
            if self._seen[n] <= seen:
                self._level[n] += _FORGET * (level - self._level[n])

    def _attention(self, counts: Sequence[int], contexts: Sequence[int]) -> float:
        return sum(
            self._of(self._kv, self.table.kv, n) * self.reads(context)
            for n, context in zip(counts, contexts, strict=True)
        )

    def _of(self, row: list[float], values: Sequence[float], tokens: int) -> float:
        return row[tokens] if tokens <= MOST else self.table.at(values, tokens)


def estimated(engine: Engine, weights: dict[str, _core.Weight]) -> Table:
    """Returns what steps should cost by bytes, bandwidth and kernels' rates alone.

    Args:
        engine: The model.
        weights: Its matrices by name.
    """
    threads = max(engine.threads, 1)
    kept = roofline.cached()
    usual = usual_machine(_core.isa())
    kernels = dict(engine.kernels())
    rates = {row.kernel: row.positions_per_second for row in kept.kernels} if kept else {}
    read = work = 0.0
    integers = True
    for name, kernel in kernels.items():
        weight = weights.get(name)
        if weight is None:
            continue
        like = "bitmap" if weight.format == "nm" else weight.format
        rate = rates.get(kernel) or usual.rates[like, weight.type]
        work += weight.rows * weight.cols / (rate * 1e9 * threads)
        integers = integers and weight.type in INTEGER_TYPES
    read = reading_seconds(engine)
    one = max(read, work) + UNHIDDEN * min(read, work)
    more = _MORE.get(_core.isa(), _MORE_OTHERWISE) if integers else _MORE_FLOATS
    kv = engine.kv_bytes_read(1) / _bandwidth(engine, engine.weight_bytes)
    tokens = (1, MOST)
    return Table(
        tokens,
        tuple(one * (1 + more * (n - 1)) for n in tokens),
        tuple(kv * (1 + more * (n - 1)) for n in tokens),
        read,
        measured=False,
    )


def context_read(engine: Engine) -> Callable[[int], float]:
    """Returns `StepCost.reads` of an engine, whose layers may have windows."""
    one = max(engine.kv_bytes_read(1), 1)
    return lambda context: engine.kv_bytes_read(context) / one


def reading_seconds(engine: Engine) -> float:
    """Returns the seconds that reading a model's weights once takes here at best."""
    return engine.weight_bytes / _bandwidth(engine, engine.weight_bytes)


def _bandwidth(engine: Engine, size: float) -> float:
    """Bytes a second that the engine's threads read of something that is so large."""
    kept = roofline.cached()
    if kept is None:
        return 1e9 * usual_machine(_core.isa()).bandwidth * max(engine.threads, 1)
    row = min(kept.reads, key=lambda reads: abs(reads.threads - engine.threads))
    return 1e9 * (row.cache if size <= kept.last_level_bytes else row.memory)


def known_table(tokens: Sequence[int], base: Sequence[float], kv: Sequence[float], weights: float) -> Table:
    """Returns a measured table with what measuring noise may not do: no step gets cheaper with tokens, none is free."""
    rising = np.maximum.accumulate(np.asarray(base, np.float64))
    return Table(tuple(tokens), tuple(rising.tolist()), tuple(max(value, 0.0) for value in kv), weights, measured=True)
