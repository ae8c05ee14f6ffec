"""How right an answer is: as it stands, by edits of words or tokens, or by the fields of a JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import GossamerError
from ..files import parse_json
from .tasks import TaskSample

METRICS = {
    "exact": "answers that are right as they stand, blanks around them aside",
    "words": "edits for a word of the right answer, by words between blanks (fewer are better)",
    "tokens": "edits for a token of the right answer, by the model's tokens (fewer are better)",
    "json": "fields of JSON objects that are right, of those in the right answer or in the model's",
}
FEWER = ("words", "tokens")
"""Metrics of which less is better."""

Encode = Callable[[str], Sequence[Any]]


@dataclass(frozen=True)
class Score:
    """What one answer adds to a metric, which is the sum of `points` over the sum of `units`.

    Attributes:
        points: Right answers, edits, or right fields.
        units: What they are of.
    """

    points: float
    units: float


def edits(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns the fewest insertions, deletions and replacements from one sequence to another (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def check_answers(metric: str, samples: Sequence[TaskSample]) -> None:
    """Raises `GossamerError` where there is no such metric, or a right answer that it cannot measure by.

    The line names file and line.
    """
    if metric not in METRICS:
        raise GossamerError(f"metric must be one of {', '.join(METRICS)}, got {metric!r:.80}")
    if metric == "json":
        for sample in samples:
            for answer in sample.answers:
                if fields(answer) is None:
                    raise GossamerError(f"{sample.where}: the metric json needs a JSON object, got {answer!r:.80}")


def score(metric: str, answer: str, right: Sequence[str], encode: Encode) -> Score:
    """Measures one answer by the right one that it is nearest to.

    Args:
        metric: One of `METRICS`.
        answer: What the model wrote.
        right: The answers that are right.
        encode: Tokens of a text, for "tokens".
    """
    if metric == "exact":
        return Score(float(any(answer.strip() == text.strip() for text in right)), 1)
    if metric == "json":
        return max((_by_fields(answer, text) for text in right), key=lambda one: one.points / one.units)
    cut: Encode = str.split if metric == "words" else encode
    own = cut(answer.strip())
    found = ((edits(own, wanted), len(wanted)) for wanted in (cut(text.strip()) for text in right))
    return Score(*min(found, key=lambda one: one[0] / one[1]))


def fields(text: str) -> dict[str, str] | None:
    """Returns the values of a JSON object by their paths, as JSON writes them; None where a text is no object.

    Objects within are entered, lists are values. Numbers of one value are written alike: 1.0 and 1e0 as 1.
    """
    try:
        value = parse_json(text.strip())
    except ValueError:
        return None
    return dict(_flat(value, "")) if isinstance(value, dict) else None


def _flat(value: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, item in value.items():
        name = prefix + json.dumps(key)
        if isinstance(item, dict) and item:
            found += _flat(item, f"{name}.")
        else:
            found.append((name, json.dumps(_by_value(item), sort_keys=True)))
    return found


def _by_value(item: Any) -> Any:
    """A value of JSON with whole numbers as such, however they are written."""
    if isinstance(item, dict):
        return {key: _by_value(inner) for key, inner in item.items()}
    if isinstance(item, list):
        return [_by_value(inner) for inner in item]
    return int(item) if isinstance(item, float) and item.is_integer() else item


def _by_fields(answer: str, right: str) -> Score:
    wanted, got = fields(right) or {}, fields(answer)
    if got is None:
        return Score(0.0, max(len(wanted), 1))
    names = wanted.keys() | got.keys()
    if not names:  # an empty object is right
        return Score(1.0, 1)
    return Score(float(sum(wanted.get(name) == got.get(name) for name in names)), len(names))


def total(scores: Sequence[Score]) -> float:
    """Returns a metric over many answers."""
    return sum(one.points for one in scores) / sum(one.units for one in scores)


def standard_error(scores: Sequence[Score]) -> float:
    """Returns the standard error of `total`, a ratio of sums over independent samples (Cochran 1977, 2.11)."""
    n, value = len(scores), total(scores)
    if n < 2:
        return math.nan
    squares = sum((one.points - value * one.units) ** 2 for one in scores)
    return math.sqrt(squares / (n * (n - 1))) / (sum(one.units for one in scores) / n)
