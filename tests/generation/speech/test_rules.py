"""Rules on what may come next: those of transformers' processor of timestamps, and the lists of the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gossamer.audio.tokens import SpeechTokens
from gossamer.generation.speech.rules import Rules
from whispers import END, FIRST_TIME, VOCAB, letters, time, token, tokenizer

torch = pytest.importorskip("torch")
process = pytest.importorskip("transformers.generation.logits_process")

TEXTS: dict[str, list[int]] = {
    "nothing": [],
    "a time": [time(0)],
    "letters": [time(0), *letters("ab")],
    "an end": [time(0), *letters("ab"), time(2)],
    "a pair": [time(0), *letters("ab"), time(2), time(2)],
    "letters behind a pair": [time(0), *letters("ab"), time(2), time(2.5), *letters("c")],
    "late": [time(0), *letters("ab"), time(29.98)],
}


def random_logits(seed: int, times: float) -> Any:
    values = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
    values[FIRST_TIME:] += np.float32(times)
    return values


@pytest.mark.parametrize("times", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("name", TEXTS)
def test_timestamps_come_where_transformers_lets_them(name: str, times: float) -> None:
    text, logits = TEXTS[name], random_logits(len(name), times)
    tokens = SpeechTokens.of(tokenizer(), VOCAB)
    found = Rules(tokens, timed=True).log_probabilities(logits[None].copy(), [text])[0]
    config = SimpleNamespace(
        no_timestamps_token_id=tokens.no_timestamps, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=50
    )
    theirs = process.WhisperTimeStampLogitsProcessor(config, begin_index=3)
    never = [*tokens.never, *(tokens.never_first if not text else [])]
    masked = torch.from_numpy(logits[None].copy())
    masked[0, never] = -torch.inf
    ids = [token("startoftranscript"), token("en"), token("transcribe"), *text]
    expected = torch.log_softmax(theirs(torch.tensor([ids]), masked), -1)[0].numpy()
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    # Differences of logits up to 40 are rounded.
    keeps = np.isfinite(expected)
    np.testing.assert_allclose(found[keeps], expected[keeps], rtol=0, atol=8 * 40 * np.finfo(np.float32).eps)


def test_lists_of_the_model_are_kept() -> None:
    a, b = letters("ab")
    tokens = SpeechTokens.of(tokenizer(suppress_tokens=[a, -1], begin_suppress_tokens=[b]), VOCAB)
    rules = Rules(tokens, timed=False)
    first, later = rules.log_probabilities(np.zeros((2, VOCAB), np.float32), [[], letters("c")])
    assert np.isinf(first[[a, b, END, *letters(" "), time(0)]]).all()
    assert np.isinf(later[[a, time(0), *tokens.languages.values(), tokens.start, tokens.no_timestamps]]).all()
    assert np.isfinite(later[[b, END, *letters(" ")]]).all()
    assert np.exp(later.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_beside_others_a_text_has_the_same() -> None:
    rules = Rules(SpeechTokens.of(tokenizer(), VOCAB), timed=True)
    logits = np.stack([random_logits(seed, 0) for seed in range(len(TEXTS))])
    together = rules.log_probabilities(logits.copy(), list(TEXTS.values()))
    for row, text, found in zip(logits, TEXTS.values(), together, strict=True):
        np.testing.assert_array_equal(rules.log_probabilities(row[None].copy(), [text])[0], found)
