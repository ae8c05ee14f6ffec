"""Speech without a real model: a tokenizer with Whisper's tokens, and an engine that says what a script tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from gossamer.text.tokenizer import Tokenizer

SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in ("en", "de", "fr")),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
END = 256
FIRST_TIME = END + len(SPECIAL)
VOCAB = FIRST_TIME + 1501


def backend() -> Backend:
    """A token a byte, and Whisper's special ones behind those."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Backend(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return made


def tokenizer(**generation: Any) -> Tokenizer:
    return Tokenizer(backend(), generation=generation)


def token(name: str) -> int:
    return END + SPECIAL.index(f"<|{name}|>")


def time(seconds: float) -> int:
    return FIRST_TIME + round(seconds / 0.02)


Script = Callable[[int, list[int]], dict[int, float]]
"""From the number of a window and the tokens of a text to the logits that stand out."""


class Scripted:
    """An engine whose logits a script tells; what is not told is far below.

    Attributes:
        windows: Features of each window, in order.
        prompts: Tokens that came first in a step of several, in order.
        live: Sequences that are not freed.
    """

    def __init__(self, script: Script) -> None:
        self.windows: list[Any] = []
        self.prompts: list[list[int]] = []
        self._script = script
        self._reads: dict[int, int] = {}
        self._tokens: dict[int, list[int]] = {}

    @property
    def live(self) -> set[int]:
        return set(self._reads)

    def remember(self, batch: Sequence[tuple[int, Any]]) -> None:
        for seq, features in batch:
            assert seq not in self._reads
            self._reads[seq], self._tokens[seq] = len(self.windows), []
            self.windows.append(np.asarray(features))

    def step(self, batch: Sequence[tuple[int, Any]]) -> Any:
        rows = []
        assert len({seq for seq, _ in batch}) == len(batch)
        for seq, ids in batch:
            if len(ids) > 1:
                self.prompts.append([*self._tokens[seq], *map(int, ids)])
            self._tokens[seq] += map(int, ids)
            row = np.full(VOCAB, -30.0, np.float32)
            for at, value in self._script(self._reads[seq], self._tokens[seq]).items():
                row[at] = value
            rows.append(row)
        return np.stack(rows)

    def fork(self, seq: int, to: int, length: int) -> None:
        assert to not in self._reads
        assert len(self._tokens[seq]) >= length
        self._reads[to], self._tokens[to] = self._reads[seq], self._tokens[seq][:length]

    def rollback(self, seq: int, n: int) -> None:
        del self._tokens[seq][len(self._tokens[seq]) - n :]

    def length(self, seq: int) -> int:
        return len(self._tokens.get(seq, []))

    def shortest(self, seq: int) -> int:  # noqa: ARG002
        return 0

    def free(self, seq: int) -> None:
        self._reads.pop(seq, None)
        self._tokens.pop(seq, None)


def says(*windows: list[int], silence: Sequence[int] = ()) -> Script:
    """Says tokens window by window, those behind the task's; `silence` are windows in which nobody speaks."""

    def script(window: int, tokens: list[int]) -> dict[int, float]:
        if tokens[-1] == token("startoftranscript"):
            return {token("de"): 5.0, token("en"): 4.0, token("nospeech"): 9.0 if window in silence else -9.0}
        start = max(at for at, one in enumerate(tokens) if one == token("startoftranscript"))
        done = tokens[start + 3 :]
        text = [*windows[window], END]
        return {text[len(done)]: 5.0} if done == text[: len(done)] and len(done) < len(text) else {END: 5.0}

    return script


def letters(text: str) -> list[int]:
    return tokenizer().encode(text, special=False)
