"""Times of words: the best path through what tokens look at, words and their marks, pauses."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from gossamer.audio.options import SpeechOptions
from gossamer.audio.tokens import SpeechTokens
from gossamer.audio.transcript import Segment
from gossamer.errors import GossamerError
from gossamer.generation.speech.timing import align, first_states, merge, split
from gossamer.generation.speech.transcribe import Transcriber
from whispers import END, VOCAB, Scripted, letters, says, time, tokenizer

WORDS = tokenizer()


def best_by_hand(gains: Any) -> float:
    """The largest sum of a path, by the recursion itself."""
    rows, cols = gains.shape
    best = np.full((rows + 1, cols + 1), -np.inf)
    best[0, 0] = 0
    for row, col in itertools.product(range(1, rows + 1), range(1, cols + 1)):
        best[row, col] = gains[row - 1, col - 1] + max(best[row - 1, col - 1], best[row - 1, col], best[row, col - 1])
    return float(best[-1, -1])


def path_total(gains: Any, first: Any) -> float:
    """The largest sum of a path that comes to each token at these states: a token may stay for the next one's first."""
    rows, cols = gains.shape
    total = 0.0
    for row in range(rows):
        last = first[row + 1] if row + 1 < rows else cols - 1
        total += float(gains[row, first[row] : last].sum(dtype=np.float64))
        alone = row + 1 == rows or last == first[row]  # otherwise the next token may come with a step of both
        total += float(gains[row, last]) if alone else max(0.0, float(gains[row, last]))
    return total


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 9), (7, 1), (5, 5), (6, 40), (40, 6)])
def test_a_path_is_the_best_one(rows: int, cols: int) -> None:
    gains = np.random.default_rng(rows * cols).normal(0, 1, (rows, cols)).astype(np.float32)
    first = first_states(gains)
    assert first[0] == 0
    assert (np.diff(first) >= 0).all()
    assert path_total(gains, first) == pytest.approx(best_by_hand(gains), abs=1e-4)


def test_attention_is_normed_over_tokens_and_smoothed() -> None:
    scores = np.zeros((2, 4, 30), np.float32)
    for row in range(4):
        scores[:, row, 7 * row : 7 * row + 7] = 5
    scores[:, :, 20] += 9  # a state that every token looks at tells nothing
    found = align(scores)
    assert found.shape == (4, 30)
    assert [int(np.argmax(row[:20])) // 7 for row in found[:3]] == [0, 1, 2]
    assert first_states(found).tolist() == [0, 7, 14, 21]


def words_of(text: str, language: str = "en") -> list[str]:
    return [WORDS.decode(piece) for piece, _ in merge(split(letters(text), WORDS, language), WORDS)]


def test_words_are_cut_at_blanks_and_keep_their_marks() -> None:
    assert words_of(' He said: "I am ill-disposed" (not you).') == [
        " He",
        " said:",
        ' "I',
        " am",
        " ill",
        '-disposed"',
        " (not",
        " you).",
    ]
    assert words_of(" größer, ja?") == [" größer,", " ja?"]
    assert words_of("你好。", "zh") == ["你", "好。"]


def look(features: Any, tokens: list[int]) -> tuple[Any, Any]:
    """Each token looks at 10 states, one behind the other; the first that follows the prompt at those from 0 on."""
    assert features.shape == (80, 3000)
    assert tokens[-1] == END
    scores = np.zeros((1, len(tokens), 1500), np.float32)
    for at in range(3, len(tokens)):
        scores[0, at, 10 * (at - 3) : 10 * (at - 2)] = 20
    return scores, np.full(len(tokens) - 1, 0.5, np.float32)


def run(seconds: float, *windows: list[int], looks: Any = look) -> list[Segment]:
    tokens = SpeechTokens.of(WORDS, VOCAB)
    engine = Scripted(says(*windows))
    made = Transcriber(engine, WORDS, tokens, bins=80, context=448, ids=itertools.count(), look=looks)
    options = SpeechOptions(language="en", words=True, beams=1, log_probability=-99)
    return list(made.segments(np.zeros(int(seconds * 16_000), np.float32), options))


def test_words_are_timed_from_their_first_letter() -> None:
    """A token a letter and 0.2 seconds a token; the second window begins at 30 seconds."""
    text = [time(0), *letters("one two"), time(1.4)]
    found = run(32, text, text)
    assert [[(word.start, word.end, word.text) for word in segment.words] for segment in found] == [
        [(0.0, 0.6, "one"), (0.6, 1.4, " two")],
        [(30.0, 30.6, "one"), (30.6, 31.4, " two")],
    ]
    assert (found[0].start, found[0].end) == (0.0, 1.4)
    assert found[0].words[0].probability == 0.5


def test_marks_take_no_time_of_their_words() -> None:
    """Four letters and a full stop: the word ends where the stop begins."""
    (segment,) = run(9, [time(0), *letters("word."), time(1)])
    assert [(word.start, word.end, word.text) for word in segment.words] == [(0.0, 0.8, "word.")]
    assert segment.end == 0.8


def test_models_that_name_no_heads_are_one_line() -> None:
    with pytest.raises(GossamerError, match="alignment_heads"):
        run(1, [], looks=None)
