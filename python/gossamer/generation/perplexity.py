"""Perplexity of a model over a text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..kinds import check_kind
from ..text.calibration import cut, window_length

if TYPE_CHECKING:
    from .model import Model

CONTEXT = 1024

# Positions whose log-probabilities are taken at once: their float64 copy is 50 MB at a vocabulary of 49152.
_ROWS = 128


@dataclass(frozen=True)
class PerplexityResult:
    """What `perplexity` measured.

    Attributes:
        ppl: exp of the mean negative log-likelihood, in nats, of the predicted tokens.
        tokens: Predicted tokens: all of the windows' but the first of each, or what begins every text.
        windows: Windows evaluated.
        context: Tokens of each, but for a shorter last one.
        seconds: Wall-clock time.
    """

    ppl: float
    tokens: int
    windows: int
    context: int
    seconds: float


def perplexity(
    model: Model,
    text: str,
    *,
    context: int | None = None,
    max_windows: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> PerplexityResult:
    """Measures how well a model predicts a text.

    The text is cut into windows that do not overlap. Each is read with an empty context, begins with the tokens that
    the tokenizer puts before every text, if there are such, and every token behind those, or else behind its first, is
    predicted from those before it in the window. A shorter last window counts too, if anything of it is predicted.

    Args:
        model: The model.
        text: The text.
        context: Tokens a window, at least 2; None takes 1024, or the model's context where that is shorter.
        max_windows: Read the first so many windows only; 0 reads all.
        progress: Called with (windows done, windows, what).

    Returns:
        The perplexity and what it was taken over.

    Raises:
        GossamerError: the text is shorter than two tokens, or `context` is below 2 or beyond the model's.
    """
    started = time.perf_counter()
    check_kind("context", context, "int", "None")
    check_kind("max_windows", max_windows, "int")
    context = window_length(context, CONTEXT, model.config.context, "context")
    if context < 2:
        raise GossamerError(f"context must be at least 2 tokens, got {context}")
    if max_windows < 0:
        raise GossamerError(f"the number of windows must not be negative, got {max_windows}")
    windows, begin = cut(text, model.tokenizer, context)
    known = max(begin, 1)
    windows = [window for window in windows if len(window) > known]
    if not windows:
        raise GossamerError(f"perplexity needs a text of at least 2 tokens, got {len(model.tokenizer.encode(text))}")
    if max_windows:
        windows = windows[:max_windows]
    loss, count = 0.0, 0
    for done, window in enumerate(windows):
        if progress is not None:
            progress(done, len(windows), "measuring perplexity")
        loss += negative_log_likelihood(model.logits(window)[known - 1 : -1], window[known:])
        count += len(window) - known
    if progress is not None:
        progress(len(windows), len(windows), "measuring perplexity")
    with np.errstate(over="ignore"):  # infinite then, as it should be
        ppl = float(np.exp(loss / count))
    return PerplexityResult(ppl, count, len(windows), context, time.perf_counter() - started)


def negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> float:
    """Sums the negative log-probabilities of some tokens, in float64.

    Args:
        logits: [n, vocab].
        targets: The tokens that came, [n].

    Returns:
        The sum over n, in nats.
    """
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        part = logits[start : start + _ROWS].astype(np.float64)
        wanted = targets[start : start + _ROWS]
        top = part.max(axis=1)
        chosen = part[np.arange(len(wanted)), wanted] - top
        part -= top[:, None]
        total += float(np.sum(np.log(np.exp(part, out=part).sum(axis=1)) - chosen))
    return total
