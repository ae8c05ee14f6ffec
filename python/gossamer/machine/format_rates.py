"""How fast this machine goes through each format with all threads: measured once, and kept.

What a model's layers do is read and work at the same time, and how well the two overlap differs from processor to
processor. So the planner does not put it together from bandwidth and instructions where it can be measured: a stack of
matrices, multiplied as a decode step does it, at a few fractions of zeros. The stack lies where the model will: beyond
the last-level cache, or in it, where it is read faster and zeros gain less. That takes a few seconds a value type and
place, the first time that a format has to be chosen.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import GossamerError
from ..folders import write_file
from ..formats import TYPES, VALUE_BITS, Shape, measure
from ..progress import Progress
from .memory import available_memory, copies
from .roofline import GROUP, PATTERN, kept_file, last_level_bytes, machine_key, random_values

_SCHEMA = 2  # raised when what is measured, or how, changes
_ZEROS = {"dense": (0.0,), "bitmap": (0.35, 0.5, 0.75, 0.9), "csr": (0.75, 0.9, 0.97), "nm": (0.5,)}
_CASES = [(format, zeros) for format, all_zeros in _ZEROS.items() for zeros in all_zeros]
_SHAPE, _SHAPE_CACHED = (1024, 2048), (768, 768)  # rows and columns; models that stay in the cache have small ones
_SECONDS = 0.012  # of one format in one round
# All formats take turns in short rounds, so that what else runs here or beside this machine does not hit one alone. The
# best few rounds of each count, and more are made while those differ by more than so much. On a machine that is busy
# with something else rounds take long: it ends after so many seconds, and is made again another time.
_ROUNDS, _MOST_ROUNDS, _BEST, _AGREED = 15, 60, 3, 0.05
_MOST_SECONDS = 20.0
# Cores that are shared with others have slow hours, in which what computes falls behind what waits for memory. So what
# is kept is looked at again before it is used, by one case that computes much, in a few rounds: where that takes less
# than such a share of what it took, all is measured anew.
_FASTER, _LOOKED_AT = 0.9, ("bitmap", 0.5)


@dataclass(frozen=True)
class FormatRate:
    """What one format reaches.

    Attributes:
        load: Where it was measured, see `load`.
        seconds: A position of a matrix takes so many 1e-9 seconds, zeros included, with all threads together.
    """

    load: float
    seconds: float


Rates = dict[str, tuple[FormatRate, ...]]  # by format, loads rising


def load(shape: Shape, format: str) -> float:
    """Returns what a format's time depends on: steps a block of csr, the share of non-zeros in bitmap, otherwise 0."""
    if format == "csr":
        return shape.steps / (len(shape.panels) * shape.csr_blocks)
    return shape.nonzeros / shape.positions if format == "bitmap" else 0.0  # padding counts as zeros


def wanted() -> bool:
    """Whether measuring is allowed: GOSSAMER_MEASURE=0 forbids it.

    Raises:
        GossamerError: it is something else than 0 and 1.
    """
    value = os.environ.get("GOSSAMER_MEASURE") or "1"
    if value not in ("0", "1"):
        raise GossamerError(f"GOSSAMER_MEASURE must be 0 or 1, got {value!r:.80}")
    return value == "1"


def stays_cached(weights: int, type: str) -> bool:
    """Whether so many weights, those of a whole model, stay in the last-level cache from token to token.

    Half of it counts: keys and values lie there, too, and on shared machines whatever else runs.
    """
    return weights * VALUE_BITS[type] // 8 <= last_level_bytes() // 2


def known(type: str, cached: bool = False) -> Rates | None:
    """Returns what was measured before on this machine; None where there is nothing usable.

    Args:
        type: One of `TYPES`.
        cached: Of weights in the last-level cache, not in memory.
    """
    machine = machine_key()
    try:
        document = json.loads(_path().read_text(encoding="utf-8"))
        if document["schema"] != _SCHEMA or document["machine"] != machine:
            return None
        return _checked(document["rates"][_key(type, cached)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def measured(type: str, cached: bool = False, progress: Progress | None = None) -> Rates:
    """Returns what this machine reaches with a value type, and measures it in a few seconds if that is not known yet.

    Where the machine is a good deal faster now than it was, it is measured again; the better time of each case counts,
    and is kept.

    Args:
        type: As for `known`, as is the next one.
        cached: Of weights in the last-level cache.
        progress: Called with (done, total, what).
    """
    before = known(type, cached)
    if before is None:
        return remeasured(type, cached, progress)
    if not _faster(type, cached, before):
        return before
    now, _ = _measure(type, cached, progress or (lambda *_: None))
    rates = {
        format: tuple(min(pair, key=lambda point: point.seconds) for pair in zip(points, now[format], strict=True))
        for format, points in before.items()
    }
    _keep(type, cached, rates)
    return rates


def remeasured(type: str, cached: bool = False, progress: Progress | None = None) -> Rates:
    """Returns what this machine reaches with a value type, measured in any case.

    It is kept unless the machine was so busy that the measurement never settled; then the next process tries again.
    """
    rates, agreed = _measure(type, cached, progress or (lambda *_: None))
    if agreed:
        _keep(type, cached, rates)
    return rates


def kept() -> dict[tuple[str, bool], Rates]:
    """Returns what was measured before on this machine, by value type and whether the weights were cached."""
    found = {(type, cached): known(type, cached) for type in TYPES for cached in (False, True)}
    return {case: rates for case, rates in found.items() if rates is not None}


def zeros(format: str) -> tuple[float, ...]:
    """Returns the fractions of zeros that a format is measured at, in the order of its rates."""
    return tuple(sorted(_ZEROS[format], reverse=True))


def seconds(rates: Rates, shape: Shape, format: str) -> float:
    """Returns the time that all threads together need for a matrix, in 1e-9 seconds.

    Between what was measured, and beyond it, time changes evenly with the load.
    """
    points = rates[format]
    at = load(shape, format)
    if len(points) == 1:
        return shape.positions * points[0].seconds
    pairs = list(pairwise(points))
    low, high = next(((a, b) for a, b in pairs if at <= b.load), pairs[-1])
    slope = (high.seconds - low.seconds) / (high.load - low.load)
    return shape.positions * max(low.seconds + slope * (at - low.load), min(point.seconds for point in points) / 2)


def _key(type: str, cached: bool) -> str:
    return f"{type} cached" if cached else type


def _path() -> Path:
    return kept_file("formats", [_SCHEMA, machine_key()])


def _keep(type: str, cached: bool, rates: Rates) -> None:
    """Adds to what is kept. Where that cannot be written, the next process measures again."""
    path = _path()
    rows = {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = {name: row for name, row in document["rates"].items() if _checked(row)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        rows = {}
    row = {format: [[point.load, point.seconds] for point in points] for format, points in rates.items()}
    rows[_key(type, cached)] = row
    with contextlib.suppress(OSError):
        write_file(path, json.dumps({"schema": _SCHEMA, "machine": machine_key(), "rates": rows}, indent=1) + "\n")


def _checked(row: Any) -> Rates:
    """Raises ValueError, TypeError or AttributeError where it is not what `_keep` wrote."""
    rates: Rates = {}
    for format in _ZEROS:
        points = tuple(FormatRate(float(load), float(seconds)) for load, seconds in row[format])
        if not points or any(not (0 < point.seconds < math.inf and 0 <= point.load < math.inf) for point in points):
            raise ValueError(f"{format} has no rates")
        if any(a.load >= b.load for a, b in pairwise(points)):
            raise ValueError(f"loads of {format} do not rise")
        rates[format] = points
    return rates


def _faster(type: str, cached: bool, rates: Rates) -> bool:
    """Whether this machine is a good deal faster than when it was measured."""
    format, share = _LOOKED_AT
    then = rates[format][zeros(format).index(share)].seconds
    stack, _ = _stack(type, cached, format, share)
    repeats = _repeats(stack)
    times = [_pass_seconds(stack, repeats) for _ in range(_BEST)]
    return _rate(stack, float(np.median(times))) < _FASTER * then


def _stack_bytes(cached: bool) -> int:
    """Returns how large each stack may be; they take turns, so all of them are there at once.

    Those in the cache have to fit it together: a cache that sees more than it holds keeps little of it, and weights
    settle there only after many passes.
    """
    if cached:
        return last_level_bytes() // (2 * len(_CASES))
    available, size = available_memory(), 2 * last_level_bytes()
    return size if available is None else min(size, max(available // (4 * len(_CASES)), 1 << 20))


def _stack(type: str, cached: bool, format: str, zeros: float) -> tuple[list[Any], float]:
    """Returns packed matrices, as many as are measured, and the load that the format has there."""
    pattern = PATTERN if format == "nm" else None
    values = random_values(*(_SHAPE_CACHED if cached else _SHAPE), zeros, pattern)
    weight = _core.pack(values, format, type, GROUP, pattern)
    return list(copies(weight, max(1, -(-_stack_bytes(cached) // weight.nbytes)))), load(measure(values), format)


def _repeats(stack: Sequence[Any]) -> int:
    """Returns how many passes over a stack make a turn."""
    return max(3, min(100, int(_SECONDS / _core.time_linears(stack, repeats=2)[0].min())))


def _pass_seconds(stack: Sequence[Any], repeats: int) -> float:
    """Returns the seconds of a pass; the first one finds other weights in the caches."""
    return float(np.median(_core.time_linears(stack, repeats=1 + repeats)[0][1:]))


def _rate(stack: Sequence[Any], seconds: float) -> float:
    """Returns what a position takes, in 1e-9 seconds."""
    return 1e9 * seconds / float(len(stack) * stack[0].rows * stack[0].cols)


def _measure(type: str, cached: bool, progress: Progress) -> tuple[Rates, bool]:
    """Returns the rates, and whether the best rounds agreed in the end."""
    what = f"measuring once which formats are fastest here ({_key(type, cached)})"
    count = len(_CASES)
    stacks, loads = [], []
    for done, (format, zeros) in enumerate(_CASES):
        progress(done, 2 * count, what)
        stack, at = _stack(type, cached, format, zeros)
        stacks.append(stack)
        loads.append(at)
    repeats = [0] * count
    rounds: list[list[float]] = []
    begun = time.monotonic()
    while _goes_on(rounds, time.monotonic() - begun):
        rounds.append([])
        for place, stack in enumerate(stacks):
            progress(min(count + (len(rounds) - 1) * count // _ROUNDS, 2 * count - 1), 2 * count, what)
            repeats[place] = repeats[place] or _repeats(stack)
            rounds[-1].append(_pass_seconds(stack, repeats[place]))
    rates: dict[str, list[FormatRate]] = {format: [] for format in _ZEROS}
    for (format, _), stack, at, passes in zip(_CASES, stacks, loads, settled(rounds), strict=True):
        rates[format].append(FormatRate(at, _rate(stack, passes)))
    progress(2 * count, 2 * count, what)
    ordered = {format: tuple(sorted(points, key=lambda point: point.load)) for format, points in rates.items()}
    return ordered, len(rounds) >= _ROUNDS and agree(rounds, _AGREED)


def _goes_on(rounds: Sequence[Sequence[float]], seconds: float) -> bool:
    """Whether another round is to be made after so many seconds."""
    if seconds > _MOST_SECONDS:
        return len(rounds) < _BEST
    return len(rounds) < _ROUNDS or (len(rounds) < _MOST_ROUNDS and not agree(rounds, _AGREED))


def settled(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Returns one time for each case of rounds in which all cases took turns: the median of its best few rounds.

    What else runs only ever adds time, and to cases that compute more than to those that wait for memory. So neither
    means nor ratios within a round tell what the machine reaches.
    """
    return [float(time) for time in np.median(_best(rounds), axis=0)]


def _best(rounds: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The best few rounds of each case."""
    return np.sort(np.array(rounds, np.float64), axis=0)[:_BEST]


def agree(rounds: Sequence[Sequence[float]], within: float) -> bool:
    """Whether the best few rounds of each case took the same time, but for such a share."""
    best = _best(rounds)
    return len(best) == _BEST and bool(np.all(best[-1] <= (1 + within) * best[0]))
