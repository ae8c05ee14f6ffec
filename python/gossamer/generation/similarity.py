"""How well vectors of texts agree with scores of how alike the texts are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..progress import Progress
from ..text.similarity import ScoredPair, spearman
from .embedding import embed_tokens, tokens_of

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class SimilarityResult:
    """What `evaluate_pairs` measured.

    Attributes:
        spearman: Rank correlation of cosines with scores.
        pairs: How many there were.
        seconds: Wall-clock time.
    """

    spearman: float
    pairs: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures ready for JSON."""
        return {"metric": "spearman", "value": self.spearman, "samples": self.pairs, "seconds": self.seconds}


def evaluate_pairs(
    model: Model,
    pairs: Sequence[ScoredPair],
    *,
    pool: str | None = None,
    truncate: bool = False,
    progress: Progress | None = None,
) -> SimilarityResult:
    """Holds the cosines of the vectors of pairs of texts against their scores, by the order of both.

    Args:
        model: An encoder.
        pairs: At least two.
        pool: As of `Model.embed`.
        truncate: As of `Model.embed`.
        progress: Called with (texts done, texts, what).

    Raises:
        GossamerError: the model is no encoder, it does not take a text, or all scores or all cosines are equal, so that
            there is no order to agree with.
    """
    start = time.perf_counter()
    tokens = tokens_of(model, [])  # what is no encoder is told without a line
    for pair in pairs:
        tokens += _tokens(model, pair, truncate)
    vectors = embed_tokens(model, tokens, pool=pool, normalize=True, progress=progress).astype(np.float64)
    cosines = (vectors[0::2] * vectors[1::2]).sum(1)
    scores = np.array([pair.score for pair in pairs], np.float64)
    found = spearman(cosines, scores)
    if math.isnan(found):
        what = "scores" if len(set(scores)) < 2 else "cosines"
        raise GossamerError(f"all {what} of {len(pairs)} pairs are equal, so that they have no order to agree with")
    return SimilarityResult(found, len(pairs), time.perf_counter() - start)


def _tokens(model: Model, pair: ScoredPair, truncate: bool) -> list[NDArray[np.int32]]:
    try:
        return tokens_of(model, pair.texts, truncate=truncate)
    except GossamerError as error:
        raise GossamerError(f"{pair.where}: {error}") from None
