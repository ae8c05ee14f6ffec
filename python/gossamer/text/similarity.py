"""Files of scored pairs: two texts and how alike they are, a JSON object a line.

    {"a": "The spider spins.", "b": "A spider makes a thread.", "score": 4.2}

Scores may be of any scale: their order counts alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..files import read_json_lines
from .messages import check_text

_TEXTS, _SCORE = ("a", "b"), "score"
_BESIDE = ("id", "metadata")  # for whoever reads the file


@dataclass(frozen=True)
class ScoredPair:
    """Two texts, and how alike they are.

    Attributes:
        where: File and line, for messages.
        texts: Both.
        score: The more, the more alike.
    """

    where: str
    texts: tuple[str, str]
    score: float


def read_pairs(path: str | Path) -> list[ScoredPair]:
    """Reads a file of scored pairs; blank lines say nothing.

    Raises:
        GossamerError: it cannot be read, holds no pairs, or a line is not as it has to be; the line names file and
            line.
    """
    pairs = []
    for where, value in read_json_lines(path, "a, b and score"):
        for name in (*_TEXTS, _SCORE):
            if name not in value:
                raise GossamerError(f"{where}: has no {name}; a pair has a, b and score")
        for name in value:
            if name not in (*_TEXTS, _SCORE, *_BESIDE):
                raise GossamerError(f"{where}: {name!r:.80} is no field of a pair, which has a, b and score")
        for name in _TEXTS:
            if not isinstance(value[name], str):
                raise GossamerError(f"{where}: {name} must be a text, got {value[name]!r:.80}")
            try:
                check_text(name, value[name])
            except GossamerError as error:
                raise GossamerError(f"{where}: {error}") from None
        score = value[_SCORE]
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise GossamerError(f"{where}: score must be a finite number, got {score!r:.80}")
        pairs.append(ScoredPair(where, (value["a"], value["b"]), float(score)))
    return pairs


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Returns how well the order of numbers agrees with that of others, from -1 to 1 (Spearman 1904).

    NaN where all of one side are equal. Of equal numbers each has the middle of their ranks.
    """
    centered = [ranks - ranks.mean() for ranks in map(_ranks, (one, other))]
    size = float(np.sqrt(np.prod([np.square(ranks).sum() for ranks in centered])))
    return float(centered[0] @ centered[1]) / size if size else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[groups], np.float64)
