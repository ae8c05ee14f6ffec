"""Beam search: several texts grow side by side over forked sequences, and the likeliest whole one is kept.

Which beams go on, which are kept and when to stop is what `transformers` does (v5), whose models are published with
settings for it. Everything that steps, forks and frees sequences will do for an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .sampling import Logits, check_finite, keep_top_k, log_softmax

if TYPE_CHECKING:
    from ..engine import Engine

Adjust = Callable[[NDArray[np.float32], Sequence[int]], NDArray[np.float32]]
"""Changes log-probabilities [vocab] of what comes after the tokens of a beam."""


@dataclass(frozen=True)
class BeamOptions:
    """How beams are searched.

    Attributes:
        beams: Texts side by side.
        most: Most new tokens of each.
        ends: Tokens that end a text.
        length_penalty: Exponent of the length, end token included, that a text's log-probability is divided by: above 0
            prefers long texts, below 0 short ones.
        early_stopping: Whether to stop as soon as as many texts have ended as there are beams, although one that is
            being written might still be better.
    """

    beams: int
    most: int
    ends: Collection[int] = ()
    length_penalty: float = 1.0
    early_stopping: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """A text that was found.

    Attributes:
        tokens: The new tokens, with the end token where there is one.
        score: Its log-probability, divided by its length as the options say.
    """

    tokens: tuple[int, ...]
    score: float


def beam_search(
    engine: Engine,
    sequence: int,
    prompt: Sequence[int],
    options: BeamOptions,
    *,
    ids: Iterator[int],
    adjust: Adjust | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Hypothesis]:
    """Finds the likeliest texts after a prompt.

    Args:
        engine: Runs the model.
        sequence: Holds what comes before, nothing or a beginning; afterwards the prompt, too. Its forks have what else
            belongs to it, such as adapters or what an encoder gave.
        prompt: The tokens that it does not hold yet, at least one.
        options: What to search.
        ids: Gives numbers of new sequences.
        adjust: Is given what a beam has of new tokens, and their log-probabilities.
        cancelled: Called before each step; where it returns true, what there is by then is returned.

    Returns:
        The texts that ended, at most as many as there are beams, the best first; those that are being written where
        none has ended.

    Raises:
        GossamerError: logits are not finite.
        CacheFull: the sequences do not fit into the cache; all but `sequence` are freed.
    """
    search = _Search(engine, options, ids, adjust)
    try:
        search.take([sequence], engine.step([(sequence, np.asarray(prompt, np.int32))]), engine.length(sequence))
        while not search.over and not (cancelled is not None and cancelled()):
            search.step()
        return search.result()
    finally:
        search.free()


@dataclass
class _Beam:
    tokens: tuple[int, ...]
    score: float  # its log-probability
    sequence: int


@dataclass
class _Search:
    """The beams that are being written and the texts that have ended."""

    engine: Engine
    options: BeamOptions
    ids: Iterator[int]
    adjust: Adjust | None
    beams: list[_Beam] = field(default_factory=list)
    ended: list[Hypothesis] = field(default_factory=list)  # the best, falling
    held: int = 0  # tokens of each sequence
    over: bool = False

    def step(self) -> None:
        """Runs each beam's last token."""
        batch = [(beam.sequence, np.array(beam.tokens[-1:], np.int32)) for beam in self.beams]
        rows = self.engine.step(batch)
        self.take([beam.sequence for beam in self.beams], rows, self.held + 1)

    def take(self, sequences: list[int], rows: NDArray[np.float32], held: int) -> None:
        """Goes on with the best continuations, given the logits of each beam; at first there is but one."""
        first = not self.beams
        parents = self.beams or [_Beam((), 0.0, sequences[0])]
        self.held = held
        keep = max(2, 1 + len(self.options.ends)) * self.options.beams  # enough go on even if all others end
        found = [(score, parent, token) for score, parent, token in self._likeliest(parents, rows, keep)]
        length = len(parents[0].tokens) + 1
        stops = [length == self.options.most or token in self.options.ends for _, _, token in found]
        full = len(self.ended) == self.options.beams
        if not (full and self.options.early_stopping):
            top = list(zip(found, stops, strict=True))[: self.options.beams]
            self._keep([choice for choice, stop in top if stop], parents, length)
        going = [choice for choice, stop in zip(found, stops, strict=True) if not stop][: self.options.beams]
        if going:
            self._fork(going, parents, first)
        self.over = not going or self._settled(length)

    def _likeliest(self, parents: list[_Beam], rows: NDArray[np.float32], count: int) -> list[tuple[float, int, int]]:
        """The best continuations: log-probability, parent and token, falling."""
        scores = np.stack([parent.score + self._steps(row, parent) for parent, row in zip(parents, rows, strict=True)])
        flat = scores.reshape(-1)
        best = keep_top_k(flat, count)
        order = best[np.argsort(-flat[best], kind="stable")]
        vocab = scores.shape[1]
        return [(float(flat[at]), int(at // vocab), int(at % vocab)) for at in order if flat[at] > -math.inf]

    def _steps(self, row: Logits, beam: _Beam) -> NDArray[np.float64]:
        """Log-probabilities of a beam's next token."""
        check_finite(row)
        steps = log_softmax(row)
        return steps if self.adjust is None else self.adjust(steps.astype(np.float32), beam.tokens).astype(np.float64)

    def _keep(self, choices: list[tuple[float, int, int]], parents: list[_Beam], length: int) -> None:
        """Adds texts that have ended; the best stay."""
        penalty = length**self.options.length_penalty
        new = [Hypothesis((*parents[parent].tokens, token), score / penalty) for score, parent, token in choices]
        best = sorted([*self.ended, *new], key=lambda one: -one.score)
        self.ended = best[: self.options.beams]

    def _settled(self, length: int) -> bool:
        """Whether no beam is expected to become better than the texts that have ended."""
        if len(self.ended) < self.options.beams:
            return False
        best = self.beams[0].score / length**self.options.length_penalty
        return self.options.early_stopping or best <= self.ended[-1].score

    def _fork(self, choices: list[tuple[float, int, int]], parents: list[_Beam], first: bool) -> None:
        """Makes the beams that go on: a parent's first child takes its sequence, the others fork it."""
        free = {} if first else {number: beam.sequence for number, beam in enumerate(parents)}
        beams: list[_Beam] = []
        try:
            for score, parent, token in choices:
                sequence = free.pop(parent, None)
                beams.append(_Beam((*parents[parent].tokens, token), score, -1 if sequence is None else sequence))
            for beam, (_, parent, _) in zip(beams, choices, strict=True):
                if beam.sequence < 0:
                    sequence = next(self.ids)
                    self.engine.fork(parents[parent].sequence, sequence, self.held)
                    beam.sequence = sequence
        finally:
            for sequence in free.values():
                self.engine.free(sequence)
            self.beams = [beam for beam in beams if beam.sequence >= 0]

    def result(self) -> list[Hypothesis]:
        """The best of what there is."""
        if self.ended:
            return self.ended
        penalty = self.options.length_penalty
        return [Hypothesis(beam.tokens, beam.score / len(beam.tokens) ** penalty) for beam in self.beams]

    def free(self) -> None:
        """Gives the beams' memory back."""
        for beam in self.beams:
            self.engine.free(beam.sequence)
