"""What windows no longer reach is given back, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from engine_cases import tokens
from gossamer import _core
from windowed import CONTEXT as LONG
from windowed import windowed_decoder as decoder

PAGE, SPAN, TAKEN_BACK = 64, 512, 512


def grown(d: _core.Decoder, text: np.ndarray, part: int, sequence: int = 0) -> np.ndarray:
    """Logits of all tokens, some at a time."""
    return np.concatenate(
        [d.step([(sequence, text[at : at + part])], all_logits=True) for at in range(0, len(text), part)]
    )


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("windows", [(40,), (1,), (600,), (40, None), (40, 600, 40)])
def test_logits_do_not_depend_on_what_was_given_back(windows: tuple[int | None, ...], kv: str) -> None:
    text = tokens(LONG)
    whole = decoder(*windows, kv=kv)
    expected = whole.step([(0, text)], all_logits=True)  # of one step nothing is given back before its end
    d = decoder(*windows, kv=kv)
    np.testing.assert_array_equal(grown(d, text, 100), expected)
    assert d.kv_bytes == whole.kv_bytes
    every = d.kv_bytes_per_token * PAGE // len(windows)
    pages = [-(-LONG // PAGE) - max(0, LONG - TAKEN_BACK + 1 - (w or LONG)) // SPAN * (SPAN // PAGE) for w in windows]
    assert d.kv_bytes == every * sum(pages) < every * len(windows) * -(-LONG // PAGE)
    d.free(0)
    assert d.kv_bytes == 0


def test_a_window_alone_takes_the_same_memory_however_long_the_text() -> None:
    most = 0
    d, text = decoder(40, 40), tokens(LONG)
    for at in range(0, LONG, 50):
        d.step([(0, text[at : at + 50])])
        most = max(most, d.kv_bytes)
    page = d.kv_bytes_per_token * PAGE
    assert most <= (2 * SPAN + TAKEN_BACK) // PAGE * page < LONG // PAGE * page
    limited = decoder(40, 40, kv_limit=most + page)  # in a step there is one more
    np.testing.assert_array_equal(grown(limited, text, 50), grown(d, text, 50, sequence=1))


@pytest.mark.parametrize("windows", [(40, 40), (40, None), (300, 40)])
def test_sequences_are_cut_no_shorter_than_what_is_kept_allows(windows: tuple[int | None, ...]) -> None:
    text, other = tokens(LONG), tokens(30, seed=1)
    d, fresh = decoder(*windows), decoder(*windows)
    assert d.shortest(0) == 0
    d.step([(0, text[:500])])
    assert d.shortest(0) == 0
    grown(d, text[500:], 90)
    least = d.shortest(0)
    assert SPAN < least <= LONG - TAKEN_BACK + max(w or 0 for w in windows)
    for call in (d.rollback, lambda seq, n: d.fork(seq, 9, LONG - n), lambda seq, n: d.save(seq, LONG - n)):
        with pytest.raises(ValueError, match=rf"{least - 1} tokens of sequence 0: what .* cut to {least} and more"):
            call(0, LONG - least + 1)
    assert (d.length(0), d.length(9)) == (LONG, 0)
    fresh.step([(0, text[:least])])
    expected = fresh.step([(0, other)], all_logits=True)
    d.fork(0, 9, least)
    np.testing.assert_array_equal(d.step([(9, other)], all_logits=True), expected)
    restored = decoder(*windows)
    restored.restore(3, d.save(0, least), least)
    assert restored.shortest(3) == least
    np.testing.assert_array_equal(restored.step([(3, other)], all_logits=True), expected)
    d.rollback(0, LONG - least)
    assert (d.length(0), d.shortest(0)) == (least, least)
    np.testing.assert_array_equal(d.step([(0, other)], all_logits=True), expected)
    d.free(9)
    d.rollback(0, least + len(other))  # all of it
    assert (d.length(0), d.shortest(0), d.kv_bytes) == (0, 0, 0)
    np.testing.assert_array_equal(grown(d, text[:200], 200), grown(restored, text[:200], 200))
