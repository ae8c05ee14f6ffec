"""One window of speech to tokens: beams, draws where they fail, and the measures by which they do."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .options import SpeechOptions
from .rules import Rules
from .tokens import SpeechTokens

_RUN = 1024
"""Scores whose largest is looked at before they are."""


class Listener(Protocol):
    """The engine of a model that reads an encoder's states; `gossamer.engine` says more."""

    def remember(self, batch: Sequence[tuple[int, ArrayLike]], /) -> None:
        """Gives sequences without tokens their inputs, features [frames, bins] each."""

    def step(self, batch: Sequence[tuple[int, ArrayLike]], /) -> NDArray[np.float32]:
        """Appends tokens to sequences; returns logits [sequences, vocab] of the last of each."""

    def fork(self, seq: int, to: int, length: int, /) -> None:
        """Begins a sequence with the first tokens of another, and its input."""

    def rollback(self, seq: int, n: int, /) -> None:
        """Forgets the last n tokens of a sequence."""

    def free(self, seq: int, /) -> None:
        """Forgets a sequence."""


@dataclass
class Decoded:
    """What a window says.

    Attributes:
        tokens: Text and timestamps, without prompt and end.
        log_probability: Mean of a token's, the end included.
        no_speech: Probability that nobody speaks.
        temperature: That it was drawn at; 0 for the likeliest.
        compression: Bytes of the text by those of it compressed: repetitions compress well.
    """

    tokens: list[int]
    log_probability: float
    no_speech: float
    temperature: float = 0.0
    compression: float = 0.0


@dataclass
class _Text:
    """One of the texts that are being written side by side."""

    seq: int
    tokens: list[int] = field(default_factory=list)
    total: float = 0.0


class Window:
    """The sequences of one window: the prompt is computed once, and each try goes on from it."""

    def __init__(
        self, engine: Listener, ids: Iterator[int], tokens: SpeechTokens, features: NDArray[np.float32]
    ) -> None:
        self._engine, self._ids, self._tokens = engine, ids, tokens
        self._root = next(ids)
        self._held: set[int] = {self._root}
        self._length = 0
        engine.remember([(self._root, np.ascontiguousarray(features.T))])

    def languages(self) -> dict[str, float]:
        """Returns the probability of each language that the model knows, by code."""
        logits = self._engine.step([(self._root, np.asarray([self._tokens.start], np.int32))])[0]
        self._engine.rollback(self._root, 1)
        known = list(self._tokens.languages)
        scores = logits[[self._tokens.languages[code] for code in known]].astype(np.float64)
        shares = np.exp(scores - scores.max())
        return dict(zip(known, (shares / shares.sum()).tolist(), strict=True))

    def begin(self, before: list[int], prompt: list[int]) -> tuple[NDArray[np.float32], float]:
        """Runs the prompt; returns the logits behind it, and the probability that nobody speaks."""
        head = np.asarray([*before, prompt[0]], np.int32)
        logits = self._engine.step([(self._root, head)])[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        silence = float(shares[self._tokens.no_speech] / shares.sum())
        if prompt[1:]:
            logits = self._engine.step([(self._root, np.asarray(prompt[1:], np.int32))])[0]
        self._length = len(before) + len(prompt)
        return np.asarray(logits, np.float32), silence

    def fork(self, seq: int, length: int) -> int:
        """Returns a new sequence with the tokens of another."""
        new = next(self._ids)
        self._held.add(new)
        self._engine.fork(seq, new, length)
        return new

    def from_prompt(self) -> int:
        """Returns a new sequence that holds the prompt."""
        return self.fork(self._root, self._length)

    def length(self, text: _Text) -> int:
        """Returns the tokens of a text whose last one its sequence has seen, the prompt included."""
        return self._length + len(text.tokens)

    def step(self, texts: list[_Text]) -> NDArray[np.float32]:
        """Gives sequences the last token of their texts."""
        return self._engine.step([(text.seq, np.asarray(text.tokens[-1:], np.int32)) for text in texts])

    def drop(self, seq: int) -> None:
        """Forgets a sequence."""
        self._held.discard(seq)
        self._engine.free(seq)

    def close(self) -> None:
        """Forgets all."""
        for seq in sorted(self._held):
            self._engine.free(seq)
        self._held.clear()


@contextmanager
def opened(
    engine: Listener, ids: Iterator[int], tokens: SpeechTokens, features: NDArray[np.float32]
) -> Iterator[Window]:
    """Gives a window, whose sequences go at the end."""
    window = Window(engine, ids, tokens, features)
    try:
        yield window
    finally:
        window.close()


def beam_search(
    window: Window, rules: Rules, logits: NDArray[np.float32], beams: int, end: int, most: int
) -> tuple[list[int], float]:
    """Returns the likeliest text, by the mean of its tokens, and the sum of its log-probabilities."""
    finished: list[tuple[list[int], float]] = []
    live = [_Text(window.from_prompt())]
    scores = rules.log_probabilities(logits[None].copy(), [[]])
    for _ in range(most):
        totals = scores.astype(np.float64) + np.asarray([text.total for text in live])[:, None]
        chosen: list[tuple[_Text, int, float]] = []
        for at in _largest(totals.ravel(), 2 * beams):
            parent, token = divmod(int(at), totals.shape[1])
            total = float(totals[parent, token])
            if token == end:
                finished.append((live[parent].tokens, total))
            else:
                chosen.append((live[parent], token, total))
            if len(chosen) == beams:
                break
        if len(finished) >= beams or not chosen:
            break
        live = _branch(window, live, chosen)
        scores = rules.log_probabilities(window.step(live), [text.tokens for text in live])
    if len(finished) < beams:  # texts that no end was found for
        rest = sorted(live, key=lambda text: -text.total)
        finished += [(text.tokens, text.total) for text in rest[: beams - len(finished)] if text.tokens]
    for text in live:
        window.drop(text.seq)
    return max(finished, key=lambda one: one[1] / max(1, len(one[0])))


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of the largest finite values, falling."""
    peaks = np.maximum.reduceat(values, np.arange(0, len(values), _RUN))
    least = np.partition(peaks, -count)[-count] if count < len(peaks) else -np.inf
    found = np.flatnonzero(values >= least)  # at least as many: every run has its peak
    found = found[np.argsort(-values[found], kind="stable")][:count]
    return np.asarray(found[np.isfinite(values[found])], np.int64)


def _branch(window: Window, live: list[_Text], chosen: list[tuple[_Text, int, float]]) -> list[_Text]:
    """Texts that go on: the first of a parent takes its sequence, others fork it; parents of none are forgotten."""
    taken: set[int] = set()
    new = []
    for parent, token, total in chosen:
        seq = parent.seq
        if seq in taken:
            seq = window.fork(seq, window.length(parent))
        taken.add(seq)
        new.append(_Text(seq, [*parent.tokens, token], total))
    for text in live:
        if text.seq not in taken:
            window.drop(text.seq)
    return new


def draw(
    window: Window,
    rules: Rules,
    logits: NDArray[np.float32],
    temperature: float,
    tries: int,
    end: int,
    most: int,
    random: np.random.Generator,
) -> tuple[list[int], float]:
    """Returns the best of some texts that are drawn, as `beam_search` does."""
    live = [_Text(window.from_prompt()) for _ in range(tries)]
    finished: list[_Text] = []
    scores = rules.log_probabilities(np.repeat(logits[None], tries, axis=0), [[] for _ in live])
    for _ in range(most):
        with np.errstate(invalid="ignore"):
            noise = -np.log(-np.log(random.random(scores.shape, np.float32).clip(1e-30, 1 - 1e-7)))
            tokens = np.argmax(scores / np.float32(temperature) + noise, axis=1)
        going = []
        for text, token, row in zip(live, tokens, scores, strict=True):
            text.total += float(row[token])
            if token == end:
                finished.append(text)
                window.drop(text.seq)
            else:
                text.tokens.append(int(token))
                going.append(text)
        live = going
        if not live:
            break
        scores = rules.log_probabilities(window.step(live), [text.tokens for text in live])
    for text in live:
        window.drop(text.seq)
    best = max([*finished, *live], key=lambda text: text.total / max(1, len(text.tokens)))
    return best.tokens, best.total


def compression_of(text: str) -> float:
    """Returns how many times smaller a text is when it is compressed."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def fails(found: Decoded, options: SpeechOptions) -> bool:
    """Whether a text repeats itself, or is too unlikely while somebody speaks."""
    if found.no_speech > options.no_speech and found.log_probability < options.log_probability:
        return False  # silence, which no draw makes likelier
    return found.compression > options.compression or found.log_probability < options.log_probability
