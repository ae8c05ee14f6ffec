"""Where a text said before what it says now: the longest earlier ends, and what followed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SHORTEST = 2
"""Tokens that have to match: a single one says too little about the next."""

LONGEST = 32
"""Tokens that are compared: beyond these, what follows is as sure as it gets."""

_TRIED = 8  # earlier ends that are compared; of equally long ones the latest counts
_MASK = (1 << 63) - 1


class TextIndex:
    """A text that grows, and the positions of its pairs and triples of tokens.

    Attributes:
        tokens: The text.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        # By triple and by pair, the last position that ends one; for each position, the one before that ends alike.
        self._last: tuple[dict[tuple[int, ...], int], ...] = ({}, {})
        self._before: tuple[list[int], ...] = ([], [])

    def extend(self, tokens: Iterable[int]) -> None:
        """Adds tokens at the end."""
        text = self.tokens
        for token in tokens:
            text.append(token)
            at = len(text) - 1
            for length, last, before in zip((3, 2), self._last, self._before, strict=True):
                if at < length - 1:
                    before.append(-1)
                    continue
                key = tuple(text[at - length + 1 :])
                before.append(last.get(key, -1))
                last[key] = at

    def find(self) -> tuple[int, int]:
        """Returns where the text's end occurred before: the position behind it, and how many tokens match.

        Zeros where it did not.
        """
        for before in self._before:
            best, length = 0, 0
            at = before[-1] if before else -1
            for _ in range(_TRIED):
                if at < 0:
                    break
                same = common_end(self.tokens, at, self.tokens, len(self.tokens) - 1)
                if same > length:
                    best, length = at + 1, same
                    if same == LONGEST:
                        break
                at = before[at]
            if length >= SHORTEST:
                return best, length
        return 0, 0

    def following(self, at: int, count: int) -> list[int]:
        """Returns what followed; where that reaches the text's end, it goes on as if the draft were written."""
        text = self.tokens
        draft = text[at : at + count]
        period = len(text) - at
        while len(draft) < count:
            draft.append(draft[len(draft) - period])
        return draft


class Corpus:
    """Tokens that drafts are taken from beside a text's own, sorted once."""

    def __init__(self, tokens: Sequence[int] | NDArray[np.int64]) -> None:
        self.tokens = np.asarray(tokens, np.int64)
        keys = _keys(self.tokens)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, text: list[int]) -> tuple[int, int]:
        """Returns as `TextIndex.find` does, of the end of another text; at least three tokens match."""
        if len(text) < 3 or not self._keys.size:
            return 0, 0
        key = _keys(np.asarray(text[-3:], np.int64))[0]
        first, end = np.searchsorted(self._keys, [key, key + 1])
        best, length = 0, 0
        for at in self._order[max(first, end - _TRIED) : end].tolist()[::-1]:
            same = common_end(self.tokens, at + 2, text, len(text) - 1)
            if same > length and same >= 3 and at + 3 < len(self.tokens):
                best, length = at + 3, same
        return best, length

    def following(self, at: int, count: int) -> list[int]:
        """Returns what followed, as far as the corpus goes."""
        found: list[int] = self.tokens[at : at + count].tolist()
        return found


def _keys(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each triple; others may have the same."""
    if tokens.size < 3:
        return np.empty(0, np.int64)
    mixed = (tokens[:-2] * 1_000_003 + tokens[1:-1]) * 998_244_353 + tokens[2:]
    return np.asarray(mixed & _MASK >> 1)


def common_end(a: Sequence[int] | NDArray[np.int64], i: int, b: Sequence[int], j: int) -> int:
    """Returns how many tokens before and at positions i and j are the same, at most `LONGEST`."""
    most = min(i + 1, j + 1, LONGEST)
    for length in range(most):
        if a[i - length] != b[j - length]:
            return length
    return most
