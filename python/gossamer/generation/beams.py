"""Beam search: several texts grow side by side over forked sequences, and the likeliest whole one is kept.

`Beams` steps, forks and frees; which beams go on and when to stop is for those who search. `beam_search` does as
`transformers` does (v5), whose models are published with settings for it; speech has Whisper's own way
(`speech/decoding.py`). Everything that steps, forks and frees sequences will do for an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .sampling import Logits, check_finite, log_softmax

if TYPE_CHECKING:
    from ..engine import Engine

Adjust = Callable[[NDArray[np.float32], Sequence[int]], NDArray[np.float32]]
"""Changes log-probabilities [vocab] of what comes after the tokens of a beam."""

Stops = Callable[[Sequence[int]], bool]
"""Whether a text ends with these tokens, whatever the last one is."""

_RUN = 1024  # scores whose largest is looked at before they are


@dataclass(frozen=True)
class Beam:
    """A text that is being written.

    Attributes:
        tokens: What was chosen.
        score: The log-probability of that.
        sequence: Of the engine; it holds all but the last of the tokens.
    """

    tokens: tuple[int, ...]
    score: float
    sequence: int


class Choice(NamedTuple):
    """A text and a token that it may go on with, and the log-probability of both."""

    score: float
    beam: Beam
    token: int


class Beams:
    """Texts of one length that are written side by side, each over a sequence of its own.

    Attributes:
        live: The texts.
    """

    def __init__(self, engine: Engine, ids: Iterator[int], sequence: int, count: int = 1) -> None:
        """Forks texts off a sequence, which stays as it is.

        Args:
            engine: Runs the model.
            ids: Gives numbers of new sequences.
            sequence: Holds what comes before. Its forks have what else belongs to it, such as adapters or what an
                encoder gave.
            count: How many texts.

        Raises:
            CacheFull: the sequences do not fit into the cache.
        """
        self._engine, self._ids = engine, ids
        self._held = engine.length(sequence)
        self.live: list[Beam] = []
        try:
            for _ in range(count):
                self.live.append(Beam((), 0.0, self._forked(sequence)))
        except BaseException:
            self.free()
            raise

    def step(self) -> NDArray[np.float32]:
        """Runs each text's last token; returns logits [texts, vocab]."""
        rows = self._engine.step([(beam.sequence, np.array(beam.tokens[-1:], np.int32)) for beam in self.live])
        self._held += 1
        return rows

    def best(self, steps: NDArray[np.floating], count: int) -> list[Choice]:
        """Returns the likeliest continuations, falling; of equal ones, those that come first.

        Args:
            steps: Log-probabilities of each text's next token, [texts, vocab]; what has -inf does not come.
            count: How many, at most.
        """
        scores = steps.astype(np.float64, copy=False) + np.array([[beam.score] for beam in self.live])
        flat, vocab = scores.reshape(-1), scores.shape[1]
        peaks = np.maximum.reduceat(flat, np.arange(0, flat.size, _RUN))
        least = np.partition(peaks, -count)[-count] if count < peaks.size else -math.inf
        found = np.flatnonzero(flat >= least)  # at least as many: every run has its peak
        order = found[np.argsort(-flat[found], kind="stable")][:count]
        return [
            Choice(float(flat[at]), self.live[at // vocab], int(at % vocab)) for at in order if flat[at] > -math.inf
        ]

    def go_on(self, choices: Sequence[Choice]) -> None:
        """Has texts go on so, and no others: a text's first token takes its sequence, further ones fork it.

        Raises:
            CacheFull: the sequences do not fit into the cache; those that were made are among `live`.
        """
        left = {beam.sequence for beam in self.live}
        going: list[Beam] = []
        try:
            for score, beam, token in choices:
                if beam.sequence in left:
                    left.remove(beam.sequence)
                    sequence = beam.sequence
                else:
                    sequence = self._forked(beam.sequence)
                going.append(Beam((*beam.tokens, token), score, sequence))
        finally:
            for sequence in left:
                self._engine.free(sequence)
            self.live = going

    def _forked(self, sequence: int) -> int:
        new = next(self._ids)
        self._engine.fork(sequence, new, self._held)
        return new

    def free(self) -> None:
        """Gives the texts' memory back."""
        for beam in self.live:
            self._engine.free(beam.sequence)


# --- the search that transformers has ---------------------------------------------------------------------------------


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
        before: Tokens of each that were there before, forced ones, and count in its length.
    """

    beams: int
    most: int
    ends: Collection[int] = ()
    length_penalty: float = 1.0
    early_stopping: bool = False
    before: int = 0

    def penalty(self, tokens: int) -> float:
        """Returns what the log-probability of a text of so many tokens is divided by."""
        return float((self.before + tokens) ** self.length_penalty)


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
    stops: Stops | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Hypothesis]:
    """Finds the likeliest texts after a prompt.

    Args:
        engine: Runs the model.
        sequence: Holds what comes before, nothing or a beginning; afterwards the prompt, too.
        prompt: The tokens that it does not hold yet, at least one.
        options: What to search.
        ids: Gives numbers of new sequences.
        adjust: Is given what a beam has of new tokens, and their log-probabilities.
        stops: Is given the new tokens of a text that may go on.
        cancelled: Called before each step; where it returns true, what there is by then is returned.

    Returns:
        The texts that ended, at most as many as there are beams, the best first; those that are being written where
        none has ended.

    Raises:
        GossamerError: logits are not finite.
        CacheFull: the sequences do not fit into the cache; all but `sequence` are freed.
    """
    rows = engine.step([(sequence, np.asarray(prompt, np.int32))])
    search = _Search(Beams(engine, ids, sequence), options, adjust, stops)
    try:
        search.take(rows)
        while not search.over and not (cancelled is not None and cancelled()):
            search.take(search.texts.step())
        return search.result()
    finally:
        search.texts.free()


@dataclass
class _Search:
    """The beams that are being written and the texts that have ended."""

    texts: Beams
    options: BeamOptions
    adjust: Adjust | None
    stops: Stops | None
    ended: list[Hypothesis] = field(default_factory=list)  # the best, falling
    over: bool = False

    def take(self, rows: NDArray[np.float32]) -> None:
        """Goes on with the best continuations, given the logits of each beam; at first there is but one."""
        beams, ends = self.options.beams, self.options.ends
        length = len(self.texts.live[0].tokens) + 1
        steps = np.stack([self._steps(row, beam) for beam, row in zip(self.texts.live, rows, strict=True)])
        found = self.texts.best(steps, max(2, 1 + len(ends)) * beams)  # enough go on even if all others end
        stops = [length == self.options.most or choice.token in ends or self._stopped(choice) for choice in found]
        full = len(self.ended) == beams
        if not (full and self.options.early_stopping):
            self._keep([choice for choice, stop in zip(found[:beams], stops[:beams], strict=True) if stop], length)
        going = [choice for choice, stop in zip(found, stops, strict=True) if not stop][:beams]
        if going:
            self.texts.go_on(going)
        self.over = not going or self._settled(length)

    def _steps(self, row: Logits, beam: Beam) -> NDArray[np.float64]:
        """Log-probabilities of a beam's next token."""
        check_finite(row)
        steps = log_softmax(row)
        return steps if self.adjust is None else self.adjust(steps.astype(np.float32), beam.tokens).astype(np.float64)

    def _stopped(self, choice: Choice) -> bool:
        return self.stops is not None and self.stops((*choice.beam.tokens, choice.token))

    def _keep(self, choices: list[Choice], length: int) -> None:
        """Adds texts that have ended; the best stay."""
        penalty = self.options.penalty(length)
        new = [Hypothesis((*beam.tokens, token), score / penalty) for score, beam, token in choices]
        self.ended = sorted([*self.ended, *new], key=lambda one: -one.score)[: self.options.beams]

    def _settled(self, length: int) -> bool:
        """Whether no beam is expected to become better than the texts that have ended."""
        if len(self.ended) < self.options.beams:
            return False
        best = self.texts.live[0].score / self.options.penalty(length)
        return self.options.early_stopping or best <= self.ended[-1].score

    def result(self) -> list[Hypothesis]:
        """The best of what there is."""
        if self.ended:
            return self.ended
        live = self.texts.live
        return [Hypothesis(beam.tokens, beam.score / self.options.penalty(len(beam.tokens))) for beam in live]
