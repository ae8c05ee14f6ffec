"""What may come next in a transcript: Whisper's rules on logits (Radford et al. 2022, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...audio.tokens import SpeechTokens
from ..sampling import check_finite

FIRST_SECONDS = 1.0
"""The first timestamp is at most this."""

_STEPS = round(FIRST_SECONDS / 0.02)


class Rules:
    """Which tokens may come next.

    Timestamps come in pairs, the end of a segment and the begin of the next, never fall, and the first token is one;
    where all of them together are likelier than any letter, one comes.
    """

    def __init__(self, tokens: SpeechTokens, *, timed: bool) -> None:
        self._tokens = tokens
        self._timed = timed
        self._never = np.asarray([*tokens.never, tokens.no_timestamps], np.int64)
        self._first = np.asarray(tokens.never_first, np.int64)

    def log_probabilities(self, logits: NDArray[np.float32], texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Turns logits into log-probabilities of what may come.

        Args:
            logits: [texts, vocab]; changes, and is what is returned.
            texts: Tokens of each so far, the prompt left out.

        Raises:
            GossamerError: logits are not finite.
        """
        check_finite(logits)
        logits[:, self._never] = -np.inf
        first = self._tokens.first_time
        if not self._timed:
            logits[:, first:] = -np.inf
        for row, text in zip(logits, texts, strict=True):
            if not text:
                row[self._first] = -np.inf
            if self._timed:
                self._restrict(row, text)
        logits -= logits.max(axis=1, keepdims=True)
        totals = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        logits -= totals
        if not self._timed:
            return logits
        for at, row in enumerate(logits):
            times = np.exp(row[first:]).sum()
            if times > 0 and np.log(times) > row[:first].max():
                logits[at, :first] = -np.inf
                logits[at] -= np.log(times)
        return logits

    def _restrict(self, row: NDArray[np.float32], text: Sequence[int]) -> None:
        first, end = self._tokens.first_time, self._tokens.end
        if not text:
            row[:first] = -np.inf
            row[first + _STEPS + 1 :] = -np.inf
            return
        timed = text[-1] >= first
        paired = len(text) < 2 or text[-2] >= first
        if timed and paired:
            row[first:] = -np.inf
        elif timed:
            row[:end] = -np.inf
        last = next((token for token in reversed(text) if token >= first), None)
        if last is not None:
            row[first : last if timed and not paired else last + 1] = -np.inf
