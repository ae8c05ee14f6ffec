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
    every = d.kv_bytes_of(1, 1) // len(windows)
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
    page = d.kv_bytes_of(1, 1)
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


@pytest.mark.parametrize("kv", ["f32", "int8"])
@pytest.mark.parametrize("windows", [(None, None), (40, 40), (1,), (600,), (40, None), (40, 600, None)])
def test_a_text_takes_no_more_than_is_said_at_any_moment_while_it_grows(
    windows: tuple[int | None, ...], kv: str
) -> None:
    """A step that took more than that would have no room."""
    text, free = tokens(LONG), decoder(*windows, kv=kv)
    for step, first in ((1, 1), (50, 23), (256, 256), (256, 100)):
        most = free.kv_bytes_of(LONG, step)
        d = decoder(*windows, kv=kv, kv_limit=most)
        d.step([(0, text[:1])])  # alone: the first step may be any
        for at in [1, *range(max(first, 2), LONG, step)]:
            until = min(LONG, max(first, 2) if at == 1 else at + step)
            d.step([(0, text[at:until])])
            assert d.kv_bytes <= free.kv_bytes_of(until, step) <= most
        assert d.length(0) == LONG
    pages = -(-LONG // PAGE)
    every = free.kv_bytes_of(1, 1)
    assert free.kv_bytes_of(LONG, LONG) == pages * every
    assert (free.kv_bytes_of(LONG, 1) < pages * every) == any(w is not None and w < 900 for w in windows)
    assert [free.kv_bytes_of(n, 256) for n in (0, 1, 64, 65, 640)] == [every * n for n in (0, 1, 1, 2, 10)]


@pytest.mark.parametrize(("window", "step"), [(66, 1), (40, 256), (1, 100), (600, 200)])
def test_there_are_moments_when_a_text_takes_all_that_is_said(window: int, step: int) -> None:
    text, deepest = tokens(LONG), SPAN - 1 + TAKEN_BACK - 1 + window
    most = decoder(window).kv_bytes_of(LONG, step)
    for limit in (most, most - 1):
        d = decoder(window, kv_limit=limit)
        for at in range(0, deepest, step):
            d.step([(0, text[at : min(at + step, deepest)])])
        if limit == most:
            d.step([(0, text[deepest : deepest + step])])
        else:
            with pytest.raises(_core.CacheFull):
                d.step([(0, text[deepest : deepest + step])])


@pytest.mark.parametrize("windows", [(None,), (40,), (40, None), (300, 40)])
@pytest.mark.parametrize("seed", range(4))
def test_sequences_that_share_pages_grow_no_more_than_is_said(windows: tuple[int | None, ...], seed: int) -> None:
    """In any order; once more under a limit of what was said, which no step passes."""
    most = decoder(*windows).kv_bytes_of(1500, 256)  # of the one that the others begin as
    for case in range(3):
        said = grown_together(windows, [seed, case], 0)
        grown_together(windows, [seed, case], max(said, most))


def grown_together(windows: tuple[int | None, ...], seed: list[int], limit: int) -> int:
    """A sequence, two forks of it, and a third that comes when all was said; returns what that was."""
    rng, text = np.random.default_rng(seed), tokens(LONG)
    d, step = decoder(*windows, kv_limit=limit), int(rng.choice([10, 100, 256]))
    first = int(rng.integers(600, 1500))
    grown(d, text[:first], step)
    d.fork(0, 1, int(rng.integers(d.shortest(0), first)) or 1)
    d.rollback(1, int(rng.integers(0, d.length(1) - d.shortest(1) + 1)))
    d.fork(0, 2, first)
    third = int(rng.integers(d.shortest(0), first))
    goals = [min(LONG, length + int(rng.integers(1, 900))) for length in (*map(d.length, range(3)), third)]
    said = d.kv_bytes + sum(d.kv_growth(i, goals[i], step) for i in range(3)) + d.kv_growth(3, goals[3], step, third)
    d.fork(0, 3, third)
    while growing := [i for i in range(4) if d.length(i) < goals[i]]:
        i = int(rng.choice(growing))
        have = d.length(i)
        d.step([(i, text[have : min(goals[i], have + int(rng.integers(1, step + 1)))])])
        assert d.kv_bytes <= said
    return said


def test_what_a_token_reads_is_what_it_sees() -> None:
    d = decoder(40, 600, None)
    one = d.kv_bytes_read(1) // 3
    assert [d.kv_bytes_read(n) // one for n in (0, 1, 40, 41, 600, 1000)] == [0, 3, 120, 122, 1240, 1640]


def test_lengths_that_cannot_be_are_refused() -> None:
    d = decoder(40)
    for call in (lambda: d.kv_bytes_of(-1, 1), lambda: d.kv_bytes_of(1, 0), lambda: d.kv_growth(0, 1, 1, -1)):
        with pytest.raises(ValueError, match="no less than no tokens"):
            call()
