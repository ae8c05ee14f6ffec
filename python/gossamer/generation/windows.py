"""Token windows that a model writes itself: what it is calibrated on where there is no other text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..progress import Progress
from ..text.calibration import (
    LENGTH,
    WINDOWS,
    Conversations,
    Turns,
    Vocabulary,
    is_document,
    openings,
    turns_of,
)

if TYPE_CHECKING:
    from ..engine import Engine

# Sequences in one decode step: on SmolLM2 a token costs a quarter less in steps of 48 than in steps of 16.
_BATCH = 48


def sampled_windows(
    decoder: Engine,
    tokenizer: Vocabulary,
    *,
    first: int = 0,
    windows: int = WINDOWS,
    length: int = LENGTH,
    seed: int = 0,
    temperature: float = 1.0,
    conversations: Conversations | None = None,
    documents: float = 0.5,
    progress: Progress | None = None,
) -> NDArray[np.int32]:
    """Lets a model write its own calibration text.

    Windows open as chats if the tokenizer has a template for it, and answers go on to what the user says next, then to
    another conversation; evenly among them, others open as documents do. A text that ends before its window is full is
    followed by a new one. Each window has a random generator of its own, so the result depends on the seed, the
    window's number and the weights alone.

    Args:
        decoder: The dense model; its sequences 0 ... 47 must be free, and are free again afterwards.
        tokenizer: The model's.
        first: Number of the first window.
        windows: Windows wanted.
        length: Tokens a window.
        seed: Of the samples.
        temperature: Above 0; below 1 the likelier tokens come more often.
        conversations: What users say; None takes general questions.
        documents: Share of windows that open as documents; without a template all do.
        progress: Called with (tokens done, tokens, what).

    Returns:
        Tokens, int32 [windows, length].
    """
    result = np.empty((windows, length), dtype=np.int32)
    total = windows * length
    chats, others = ([[opening] for opening in kind] for kind in openings(tokenizer))
    if conversations is not None:
        chats = [turns_of(tokenizer, said) for said in conversations]
    for done in range(0, windows, _BATCH):
        rows = [
            _Row(
                result[i],
                others if not chats or is_document(first + i, documents) else chats,
                tokenizer.eos_ids,
                np.random.default_rng([seed, first + i]),
                temperature,
            )
            for i in range(done, min(done + _BATCH, windows))
        ]
        try:
            while active := [(seq, row) for seq, row in enumerate(rows) if not row.full]:
                logits = decoder.step([(seq, row.pending()) for seq, row in active])
                for (_, row), scores in zip(active, logits, strict=True):
                    row.sample(scores)
                if progress is not None:
                    progress(done * length + sum(row.filled for row in rows), total, "sampling calibration text")
        finally:
            for seq in range(len(rows)):
                decoder.free(seq)
    return result


class _Row:
    """One window being written: what is filled, and what of it the decoder has not seen."""

    def __init__(
        self,
        tokens: NDArray[np.int32],
        openings: list[Turns],
        ends: frozenset[int],
        rng: np.random.Generator,
        temperature: float,
    ) -> None:
        self.filled = 0
        self._tokens = tokens
        self._seen = 0
        self._openings = openings
        self._ends = ends
        self._rng = rng
        self._temperature = temperature
        self._turns: Turns = []  # what is still to be said
        self._open()

    @property
    def full(self) -> bool:
        return self.filled == len(self._tokens)

    def pending(self) -> NDArray[np.int32]:
        """Returns the tokens that the decoder is to see next."""
        part = self._tokens[self._seen : self.filled]
        self._seen = self.filled
        return part

    def sample(self, logits: NDArray[np.float32]) -> None:
        """Draws the next token from logits [vocab]; after an end-of-text token comes the next turn, or a new text."""
        mass = np.cumsum(np.exp((logits - logits.max()) / self._temperature), dtype=np.float64)
        token = int(np.searchsorted(mass, self._rng.random() * mass[-1], side="right"))
        self._append([min(token, len(logits) - 1)])
        if token in self._ends and not self.full:
            self._append(self._turns.pop(0)) if self._turns else self._open()

    def _open(self) -> None:
        first, *self._turns = self._openings[self._rng.integers(len(self._openings))]
        self._append(first)

    def _append(self, tokens: Sequence[int]) -> None:
        part = list(tokens)[: len(self._tokens) - self.filled]
        self._tokens[self.filled : self.filled + len(part)] = part
        self.filled += len(part)
