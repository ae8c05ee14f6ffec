"""Perplexity against a plain computation."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gossamer.errors import GossamerError
from gossamer.generation.perplexity import negative_log_likelihood, perplexity

VOCAB = 50


class Model:
    """Logits that depend on a token and on its place in the window."""

    def __init__(self, scale: float = 1.0) -> None:
        self.config = SimpleNamespace(context=64)
        self.tokenizer = SimpleNamespace(encode=lambda text: [ord(c) % VOCAB for c in text])
        self.table = scale * np.random.default_rng(0).standard_normal((64, VOCAB, VOCAB))
        self.windows: list[int] = []

    def logits(self, tokens: Any) -> Any:
        self.windows.append(len(tokens))
        return np.stack([self.table[i, t] for i, t in enumerate(tokens)]).astype(np.float32)


def by_hand(model: Model, text: str, context: int) -> tuple[float, int]:
    tokens = model.tokenizer.encode(text)
    losses = []
    for start in range(0, len(tokens), context):
        window = tokens[start : start + context]
        for i in range(len(window) - 1):
            row = model.table[i, window[i]].astype(np.float32).astype(np.float64)
            losses.append(math.log(sum(math.exp(v) for v in row)) - row[window[i + 1]])
    return math.exp(sum(losses) / len(losses)), len(losses)


TEXT = "".join(chr(33 + (i * i) % 89) for i in range(150))


@pytest.mark.parametrize(("length", "context"), [(150, 64), (2, 64), (65, 64), (64, 64), (129, 32), (10, 2), (131, 5)])
def test_equals_a_plain_computation(length: int, context: int) -> None:
    model = Model()
    result = perplexity(model, TEXT[:length], context=context)
    ppl, count = by_hand(model, TEXT[:length], context)
    assert result.tokens == count
    assert result.ppl == pytest.approx(ppl, rel=1e-12)
    assert result.windows == len(model.windows)
    assert all(2 <= n <= context for n in model.windows)


def test_the_first_windows_alone_and_progress() -> None:
    calls = []
    result = perplexity(
        Model(),
        TEXT,
        context=20,
        max_windows=3,
        progress=lambda *call: calls.append(call[:2]),
    )
    assert (result.windows, result.tokens) == (3, 3 * 19)
    assert result.ppl == pytest.approx(by_hand(Model(), TEXT[:60], 20)[0], rel=1e-12)
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("length", "context"), [(150, 64), (1, 64), (64, 64), (63, 64), (10, 2), (131, 5)])
def test_what_begins_every_text_begins_every_window(length: int, context: int) -> None:
    """And is not predicted: a model that was never trained without it predicts nothing behind another begin."""
    model, begin = Model(), 7
    plain = model.tokenizer.encode
    model.tokenizer = SimpleNamespace(encode=lambda text: [begin, *plain(text)])
    losses, inside = [], plain(TEXT[:length])
    for start in range(0, length, context - 1):
        window = [begin, *inside[start : start + context - 1]]
        for at, token in enumerate(window[1:]):
            row = model.table[at, window[at]].astype(np.float32).astype(np.float64)
            losses.append(math.log(sum(math.exp(v) for v in row)) - row[token])
    result = perplexity(model, TEXT[:length], context=context)
    assert result.tokens == len(losses) == length
    assert result.ppl == pytest.approx(math.exp(sum(losses) / length), rel=1e-12)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    assert perplexity(Model(scale=0), TEXT, context=64).ppl == pytest.approx(VOCAB, rel=1e-12)


def test_logits_too_large_for_exp() -> None:
    logits = np.array([[3e38, 0.0], [-3e38, 0.0]], dtype=np.float32)
    assert negative_log_likelihood(logits, np.array([0, 1])) == 0.0
    assert perplexity(Model(scale=1e6), TEXT, context=64).ppl == math.inf


@pytest.mark.parametrize("text", ["", "x"])
def test_a_text_that_is_too_short(text: str) -> None:
    with pytest.raises(GossamerError, match=f"at least 2 tokens, got {len(text)}"):
        perplexity(Model(), text, context=64)


@pytest.mark.parametrize("context", [1, 0, -5, 65])
def test_a_context_out_of_range(context: int) -> None:
    words = f"at least 2 tokens, got {context}" if context < 2 else "65 is more than the model's context of 64 tokens"
    with pytest.raises(GossamerError, match=words):
        perplexity(Model(), TEXT, context=context)


@pytest.mark.parametrize("option", [{"context": 2.0}, {"context": True}, {"max_windows": "2"}, {"max_windows": True}])
def test_options_of_other_kinds(option: dict[str, Any]) -> None:
    with pytest.raises(GossamerError, match=f"{next(iter(option))} must be a whole number"):
        perplexity(Model(), TEXT, **option)


def test_a_negative_number_of_windows() -> None:
    with pytest.raises(GossamerError, match="must not be negative, got -1"):
        perplexity(Model(), TEXT, context=8, max_windows=-1)


def test_a_context_that_nobody_asked_for_fits_the_model(caplog: pytest.LogCaptureFixture) -> None:
    result, asked = perplexity(Model(), TEXT), perplexity(Model(), TEXT, context=64)
    assert (result.context, result.ppl) == (64, asked.ppl)
    assert caplog.messages == ["the model holds 64 tokens, fewer than the usual 1024: context is 64"]
