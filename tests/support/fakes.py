"""A decoder and a tokenizer small enough to predict by hand: they pin the decode loop without the native module."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.llama import Sizes
from gossamer.engine import Batch
from gossamer.generation.model import Model

EOS = 0


class FakeDecoder:
    """An `Engine` that says `script[position]` next whatever it was fed, or, without a script, the last token plus one.

    Keeps what each sequence holds, so that tests can see what was computed, rolled back and freed.
    """

    weight_bytes = 1000
    threads = 2
    kv = "f32"
    kv_limit = 0

    def __init__(self, vocab: int, script: list[int] | None = None) -> None:
        self.vocab = vocab
        self.script = script
        self.held: dict[int, list[int]] = {}
        self.steps: list[tuple[int, list[int]]] = []
        self.fail_at: tuple[int, BaseException] | None = None  # (step number, what it raises)
        self.logits: NDArray[np.float32] | None = None

    def step(self, batch: Batch, all_logits: bool = False) -> NDArray[np.float32]:
        if self.fail_at is not None and len(self.steps) == self.fail_at[0]:
            error, self.fail_at = self.fail_at[1], None
            raise error
        rows = []
        for sequence, tokens in batch:
            held = self.held.setdefault(sequence, [])
            ids = np.asarray(tokens).tolist()
            self.steps.append((sequence, ids))
            for token in ids:
                held.append(token)
                rows.append(self._row(held))
            if not all_logits:
                del rows[-len(ids) : -1]
        return np.stack(rows)

    def _row(self, held: list[int]) -> NDArray[np.float32]:
        if self.logits is not None:
            return self.logits
        row = np.zeros(self.vocab, np.float32)
        row[self.script[len(held) % len(self.script)] if self.script else (held[-1] + 1) % self.vocab] = 5.0
        return row

    def fork(self, seq: int, to: int, length: int) -> None:
        if not 0 <= length <= self.length(seq) or self.length(to):
            raise ValueError(f"cannot fork {length} tokens of {self.length(seq)} into a sequence of {self.length(to)}")
        self.held[to] = self.held.get(seq, [])[:length]

    def rollback(self, seq: int, n: int) -> None:
        assert 0 < n <= len(self.held[seq])
        del self.held[seq][-n:]

    def shortest(self, seq: int) -> int:  # noqa: ARG002
        return 0

    def free(self, seq: int) -> None:
        self.held.pop(seq, None)

    def length(self, seq: int) -> int:
        return len(self.held.get(seq, []))

    @property
    def kv_bytes(self) -> int:
        return self.kv_bytes_read(sum(map(len, self.held.values())))

    def kv_bytes_of(self, tokens: int, step: int) -> int:  # noqa: ARG002
        return self.kv_bytes_read(tokens)

    def kv_growth(self, seq: int, tokens: int, step: int, forked: int = 0) -> int:  # noqa: ARG002
        return self.kv_bytes_read(max(tokens - max(self.length(seq), forked), 0))

    def kv_bytes_read(self, tokens: int) -> int:
        return 10 * tokens

    def kernels(self) -> list[tuple[str, str]]:
        return [("head", "script")]


class FakeTokenizer:
    """One token a word of `words`; token 0 ends the text. `lag` holds every piece back by one push."""

    eos_ids = frozenset({EOS})

    def __init__(self, words: list[str], template: bool = False, lag: bool = False) -> None:
        self.generation: dict[str, Any] = {}
        self.words = words
        self.vocab_size = len(words)
        self.has_chat_template = template
        self.lag = lag
        self.streams: list[bool] = []  # whether each began a text

    def encode(self, text: str, special: bool = True) -> list[int]:  # noqa: ARG002 - as the tokenizer has it
        ids = []
        while text:
            token = max(range(1, len(self.words)), key=lambda i: text.startswith(self.words[i]) * len(self.words[i]))
            ids.append(token)
            text = text.removeprefix(self.words[token])
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)

    def token_bytes(self, token: int) -> bytes:
        return self.words[token].encode()

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        roles = {"user": "<u>", "assistant": "<a>", "system": ""}
        text = "".join(roles[m["role"]] + m["content"] for m in messages)
        return self.encode(text + ("<a>" if add_generation_prompt else ""))

    def stream(self, begins: bool = False) -> FakeStream:
        self.streams.append(begins)
        return FakeStream(self)


class FakeStream:
    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self.tokenizer = tokenizer
        self.kept = ""

    def push(self, token: int) -> str:
        word = self.tokenizer.words[token]
        if not self.tokenizer.lag:
            return word
        word, self.kept = self.kept, word
        return word

    def flush(self) -> str:
        word, self.kept = self.kept, ""
        return word


LETTERS = ["", *"abcdefghij", "<u>", "<a>"]


def fake_model(
    script: str | None = None,
    *,
    context: int = 1000,
    words: list[str] = LETTERS,
    template: bool = False,
    lag: bool = False,
) -> Model:
    """A model over `FakeDecoder`; `script` is its text by position of the next token, with "." for the end."""
    config = Sizes(
        hidden=4, layers=1, heads=1, kv_heads=1, head_dim=4, intermediate=4, vocab=len(words), context=context,
        norm_eps=1e-5, inv_freq=(1.0, 0.1),
    ).describe()  # fmt: skip
    tokenizer: Any = FakeTokenizer(words, template, lag)
    ids = None if script is None else [EOS if word == "." else words.index(word) for word in script]
    return Model(FakeDecoder(len(words), ids), config, tokenizer, {"name": "fake"}, {})


def decoder_of(model: Model) -> FakeDecoder:
    assert isinstance(model.decoder, FakeDecoder)
    return model.decoder
