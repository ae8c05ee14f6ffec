"""One window of speech to tokens: beams, draws where they fail, and the measures by which they do."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..._core import CacheFull
from ...engine import Engine, Reading
from ...errors import GossamerError
from ..beams import Beams, Choice
from .rules import Rules

if TYPE_CHECKING:
    from ...audio.options import SpeechOptions
    from ...audio.tokens import SpeechTokens


class Listener(Engine, Reading, Protocol):
    """An engine whose sequences read sound."""


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


class Window:
    """One window of sound: the prompt is computed once, and each try goes on from it."""

    def __init__(
        self, engine: Listener, ids: Iterator[int], tokens: SpeechTokens, features: NDArray[np.float32]
    ) -> None:
        self._engine, self._ids, self._tokens = engine, ids, tokens
        self._root = next(ids)
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
        return np.asarray(logits, np.float32), silence

    @contextmanager
    def texts(self, count: int = 1) -> Iterator[Beams]:
        """Gives texts that go on from the prompt; their sequences go at the end."""
        texts = Beams(self._engine, self._ids, self._root, count)
        try:
            yield texts
        finally:
            texts.free()

    def close(self) -> None:
        """Forgets the prompt."""
        self._engine.free(self._root)


@contextmanager
def opened(
    engine: Listener, ids: Iterator[int], tokens: SpeechTokens, features: NDArray[np.float32]
) -> Iterator[Window]:
    """Gives a window, whose sequences go at the end.

    Raises:
        GossamerError: they do not fit into the engine's cache.
    """
    try:
        window = Window(engine, ids, tokens, features)
        try:
            yield window
        finally:
            window.close()
    except CacheFull as error:
        raise GossamerError(f"a window of sound does not fit: {error}") from None


def beam_search(
    window: Window, rules: Rules, logits: NDArray[np.float32], beams: int, end: int, most: int
) -> tuple[list[int], float]:
    """Searches as Whisper does, which keeps every text that ends before as many as there are beams go on.

    Args:
        window: What is heard, its prompt computed.
        rules: Which tokens may come.
        logits: Behind the prompt, [vocab].
        beams: Texts side by side.
        end: The token that ends a text.
        most: Most tokens of a text.

    Returns:
        The likeliest text, by the mean of its tokens, and the sum of its log-probabilities.

    Raises:
        GossamerError: logits are not finite.
        CacheFull: the sequences do not fit into the cache.
    """
    finished: list[tuple[tuple[int, ...], float]] = []
    with window.texts() as texts:
        steps = rules.log_probabilities(logits[None].copy(), [()])
        for _ in range(most):
            going: list[Choice] = []
            for choice in texts.best(steps, 2 * beams):
                if choice.token == end:
                    finished.append((choice.beam.tokens, choice.score))
                else:
                    going.append(choice)
                if len(going) == beams:
                    break
            if len(finished) >= beams or not going:
                break
            texts.go_on(going)
            steps = rules.log_probabilities(texts.step(), [beam.tokens for beam in texts.live])
        if len(finished) < beams:  # texts that no end was found for
            rest = sorted(texts.live, key=lambda beam: -beam.score)
            finished += [(beam.tokens, beam.score) for beam in rest[: beams - len(finished)] if beam.tokens]
    tokens, total = max(finished, key=lambda one: one[1] / max(1, len(one[0])), default=((), 0.0))
    return list(tokens), total


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
    """Returns the best of some texts that are drawn, as `beam_search` does; raises the same.

    Args:
        window: As of `beam_search`, as are the next two.
        rules: Which tokens may come.
        logits: Behind the prompt, [vocab].
        temperature: Above 0.
        tries: Texts.
        end: As of `beam_search`, as is the next.
        most: Most tokens of a text.
        random: Gives the random numbers.
    """
    finished: list[tuple[tuple[int, ...], float]] = []
    with window.texts(tries) as texts:
        steps = rules.log_probabilities(np.repeat(logits[None], tries, axis=0), [()] * tries)
        for _ in range(most):
            with np.errstate(invalid="ignore"):
                noise = -np.log(-np.log(random.random(steps.shape, np.float32).clip(1e-30, 1 - 1e-7)))
                tokens = np.argmax(steps / np.float32(temperature) + noise, axis=1).tolist()
            chosen = [
                Choice(beam.score + float(row[token]), beam, token)
                for beam, token, row in zip(texts.live, tokens, steps, strict=True)
            ]
            finished += [(beam.tokens, total) for total, beam, token in chosen if token == end]
            texts.go_on([choice for choice in chosen if choice.token != end])
            if not texts.live:
                break
            steps = rules.log_probabilities(texts.step(), [beam.tokens for beam in texts.live])
        finished += [(beam.tokens, beam.score) for beam in texts.live]
    best, total = max(finished, key=lambda one: one[1] / max(1, len(one[0])))
    return list(best), total


def compression_of(text: str) -> float:
    """Returns how many times smaller a text is when it is compressed."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def fails(found: Decoded, options: SpeechOptions) -> bool:
    """Whether a text repeats itself, or is too unlikely while somebody speaks."""
    if found.no_speech > options.no_speech and found.log_probability < options.log_probability:
        return False  # silence, which no draw makes likelier
    return found.compression > options.compression or found.log_probability < options.log_probability
