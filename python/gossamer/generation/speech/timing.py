"""When each word is said: attention to the sound, aligned with the words (dynamic time warping)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...audio.tokens import SECONDS, SpeechTokens
from ...audio.transcript import Segment, Word

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer

Look = Callable[[NDArray[np.float32], list[int]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From features and tokens to scores of attention [heads, tokens, states], of heads that follow words, and to the
probability [tokens - 1] of each next token."""

_UNSPACED = {"zh", "ja", "th", "lo", "my", "yue"}  # languages that put no blanks between words
_BEFORE = "\"'“¿([{-"
_BEHIND = "\"'.。,，!！?？:：”)]}、"
_SENTENCE = ".。!！?？"
_MEDIAN = 7  # states that a score becomes the middle one of
_USUAL = 0.7  # seconds, the most that a usual word is believed to take


def timed(
    segments: list[Segment],
    features: NDArray[np.float32],
    prompt: list[int],
    frames: int,
    offset: float,
    *,
    tokenizer: Tokenizer,
    tokens: SpeechTokens,
    language: str,
    look: Look,
) -> list[Segment]:
    """Returns segments with words.

    Args:
        segments: Of one window.
        features: Of the window.
        prompt: What its transcript began with: start, language and task.
        frames: Those that are no padding.
        offset: When the window begins, in seconds.
        tokenizer: Of the model.
        tokens: That steer the model.
        language: Code.
        look: See `Look`.
    """
    texts = [[token for token in segment.tokens if token < tokens.end] for segment in segments]
    text = [token for one in texts for token in one]
    lead = [*prompt, tokens.no_timestamps]
    scores, probabilities = look(features, [*lead, *text, tokens.end])
    # A row is of the token that is read, and tells where the next one is said.
    rows = align(scores[:, :, : max(1, frames // 2)])[len(lead) - 1 : -1]
    starts = offset + first_states(rows) * SECONDS
    chances = probabilities[len(lead) - 1 :][: len(text)]
    found, at = [], 0
    for segment, own in zip(segments, texts, strict=True):
        words = []
        for piece, bare in merge(split(own, tokenizer, language), tokenizer):
            until = at + len(piece)
            chance = float(chances[at:until].mean())
            start, end = float(starts[at + bare.start]), float(starts[at + bare.stop])
            words.append(Word(start, end, tokenizer.decode(piece), round(chance, 4)))
            at = until
        found.append(_fit(segment, words))
    return found


def align(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns how much each token looks at each state [tokens, states]: shares, normed over tokens, smoothed."""
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    shares -= shares.mean(axis=-2, keepdims=True)
    shares /= np.maximum(shares.std(axis=-2, keepdims=True), np.float32(1e-10))
    half = _MEDIAN // 2
    if shares.shape[-1] > half:
        wide = np.pad(shares, ((0, 0), (0, 0), (half, half)), mode="reflect")
        shares = np.median(np.lib.stride_tricks.sliding_window_view(wide, _MEDIAN, axis=-1), axis=-1)
    mean: NDArray[np.float32] = shares.mean(axis=0)
    return mean


def first_states(gains: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the state at which the best path through gains [tokens, states] comes to each token.

    A path goes on by a token, by a state, or by both; it is found diagonal by diagonal.
    """
    rows, cols = gains.shape
    # The best sum up to (row, col) stands at [row + col, row]: what it comes from is one and two diagonals before.
    best = np.full((rows + cols - 1, rows), -np.inf)
    came = np.zeros((rows + cols - 1, rows), np.int8)
    best[0, 0] = gains[0, 0]
    for diagonal in range(1, rows + cols - 1):
        row = np.arange(max(0, diagonal - cols + 1), min(rows, diagonal + 1))
        last, before = best[diagonal - 1], best[diagonal - 2] if diagonal > 1 else np.full(rows, -np.inf)
        above = np.maximum(row - 1, 0)
        steps = np.stack(
            [
                np.where(row > 0, before[above], -np.inf),
                np.where(row > 0, last[above], -np.inf),
                np.where(row < diagonal, last[row], -np.inf),
            ]
        )
        came[diagonal, row] = steps.argmax(axis=0)
        best[diagonal, row] = steps.max(axis=0) + gains[row, diagonal - row]
    first = np.zeros(rows, np.int64)
    row, col = rows - 1, cols - 1
    while True:
        first[row] = col
        if row == col == 0:
            return first
        step = came[row + col, row]
        row, col = row - (step < 2), col - (step != 1)


def split(tokens: list[int], tokenizer: Tokenizer, language: str) -> list[list[int]]:
    """Cuts tokens into words: at blanks, or where letters are whole in languages without."""
    whole: list[list[int]] = [[]]
    for token in tokens:
        whole[-1].append(token)
        if not tokenizer.decode(whole[-1]).endswith("\ufffd"):
            whole.append([])
    pieces = [piece for piece in whole if piece]
    if language in _UNSPACED:
        return pieces
    words: list[list[int]] = []
    for piece in pieces:
        text = tokenizer.decode(piece)
        blank = bool(words) and not tokenizer.decode(words[-1]).strip()  # belongs to what comes behind it
        if not words or (not blank and (text.startswith(" ") or text.strip() in _BEFORE + _BEHIND)):
            words.append(list(piece))
        else:
            words[-1] += piece
    return words


def merge(words: list[list[int]], tokenizer: Tokenizer) -> list[tuple[list[int], slice]]:
    """Puts opening marks to the word behind them and closing ones to the word before.

    Returns:
        The tokens of each, and which of them are the word itself, whose times are its own: marks are pauses.
    """
    merged: list[tuple[list[int], slice]] = []
    opens = False
    for word in words:
        text = tokenizer.decode(word)
        if merged and not opens and not text.startswith(" ") and text in _BEHIND:
            merged[-1] = merged[-1][0] + word, merged[-1][1]
        elif opens:
            before = merged.pop()[0]
            merged.append((before + word, slice(len(before), len(before) + len(word))))
        else:
            merged.append((list(word), slice(0, len(word))))
        opens = text.startswith(" ") and text.strip() != "" and text.strip() in _BEFORE
    return merged


def _fit(segment: Segment, words: list[Word]) -> Segment:
    """Cuts words short that take in a pause, at ends of sentences and at those of the segment."""
    if not words:
        return segment
    spans = [word.end - word.start for word in words if word.end > word.start]
    usual = min(_USUAL, float(np.median(spans))) if spans else 0.0
    for at, word in enumerate(words):
        if at and word.end - word.start > 2 * usual:
            if word.text.strip()[-1:] in _SENTENCE:
                words[at] = replace(word, end=word.start + 2 * usual)
            elif words[at - 1].text.strip()[-1:] in _SENTENCE:
                words[at] = replace(word, start=word.end - 2 * usual)
    first, last = words[0], words[-1]
    if first.start + 0.5 < segment.start < first.end:
        words[0] = replace(first, start=max(0.0, min(first.end - usual, segment.start)))
    if last.start < segment.end < last.end - 0.5:
        words[-1] = replace(words[-1], end=max(last.start + usual, segment.end))
    words = [replace(word, start=round(word.start, 2), end=round(word.end, 2)) for word in words]
    return replace(segment, start=words[0].start, end=words[-1].end, words=words)
