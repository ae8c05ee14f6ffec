"""Pages of keys and values: shared by forks, written by one alone, limited, and given back."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_cases import config, decoder, tokens
from gossamer import _core

PAGE = 64


def page_bytes(d: _core.Decoder) -> int:
    return d.kv_bytes_of(1, 1)


def continued(d: Any, sequence: int, text: np.ndarray) -> np.ndarray:
    """Logits of a text token by token."""
    return np.array([d.step([(sequence, text[i : i + 1])])[0] for i in range(len(text))])


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 150])
def test_a_fork_goes_on_as_the_whole_text_would(length: int, kv: str) -> None:
    d = decoder(config(), kv=kv)
    text, other = tokens(150), tokens(80, seed=1)
    d.step([(0, text)])
    d.fork(0, 5, length)
    assert (d.length(0), d.length(5)) == (150, length)
    forked = continued(d, 5, other)
    own = d.step([(0, other)], all_logits=True)
    fresh = decoder(config(), kv=kv)
    fresh.step([(0, text[:length])])
    np.testing.assert_array_equal(forked, fresh.step([(0, other)], all_logits=True))
    fresh.free(0)
    fresh.step([(0, text)])
    np.testing.assert_array_equal(own, fresh.step([(0, other)], all_logits=True))


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_a_saved_sequence_goes_on_in_another_decoder(length: int, kv: str) -> None:
    d, other = decoder(config(), kv=kv), tokens(80, seed=1)
    text = tokens(150)
    d.step([(0, text)])
    kept = d.save(0, length)
    assert kept.size == -(-length // PAGE) * page_bytes(d)
    fresh = decoder(config(), kv=kv)
    fresh.restore(7, kept, length)
    assert (fresh.length(7), fresh.kv_bytes) == (length, kept.size)
    d.rollback(0, 150 - length)
    np.testing.assert_array_equal(continued(fresh, 7, other), d.step([(0, other)], all_logits=True))
    assert d.save(9, 0).size == 0


def test_what_cannot_be_saved_or_restored_changes_nothing() -> None:
    d = decoder(config(), kv_limit=4 * page_bytes(decoder(config())))
    d.step([(0, tokens(70))])
    kept = d.save(0, 70)
    for call, arguments, message in [
        (d.save, (0, 71), "cannot save 71 tokens of sequence 0, which has 70"),
        (d.save, (9, 1), "cannot save 1 tokens of sequence 9, which has 0"),
        (d.save, (0, -1), "cannot save -1 tokens"),
        (d.restore, (0, kept, 70), "cannot restore sequence 0, which has 70 tokens"),
        (d.restore, (-1, kept, 70), "sequence ids must not be negative, got -1"),
        (d.restore, (1, kept, 0), "there must be a token to restore, got 0"),
        (d.restore, (1, kept, 64), f"64 tokens take {page_bytes(d)} bytes of keys and values here, got {kept.size}"),
        (d.restore, (1, kept[:-1], 70), "bytes of keys and values here"),
        (d.restore, (1, kept[::2], 70), "an array of uint8 without gaps"),
        (d.restore, (1, kept, 5000), "5000 tokens exceed the context of 1400"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(*arguments)  # type: ignore[operator]
    d.step([(2, tokens(60))])
    with pytest.raises(_core.CacheFull):
        d.restore(1, kept, 70)
    assert (d.length(0), d.length(1), d.kv_bytes) == (70, 0, 3 * page_bytes(d))


def test_forks_share_whole_pages_and_copy_the_rest() -> None:
    d = decoder(config())
    assert d.kv_bytes == 0
    d.step([(0, tokens(150))])
    assert d.kv_bytes == 3 * page_bytes(d)
    d.fork(0, 1, 150)
    assert d.kv_bytes == 4 * page_bytes(d)
    d.fork(0, 2, 128)
    d.fork(2, 3, 64)
    assert d.kv_bytes == 4 * page_bytes(d)
    d.free(0)
    assert d.kv_bytes == 3 * page_bytes(d)
    d.free(1)
    assert d.kv_bytes == 2 * page_bytes(d)
    d.rollback(2, 64)
    assert d.kv_bytes == page_bytes(d)
    d.free(2)
    d.free(3)
    assert d.kv_bytes == 0


@pytest.mark.parametrize("writer", [0, 1])
def test_a_shared_page_is_copied_before_it_is_written(writer: int) -> None:
    """A sequence that was rolled back into a page that it shares."""
    text, other = tokens(192), tokens(70, seed=3)
    d = decoder(config())
    d.step([(0, text)])
    d.fork(0, 1, 192)
    d.rollback(writer, 100)  # within the second page
    written = continued(d, writer, other)
    kept = d.step([(1 - writer, other)], all_logits=True)
    fresh = decoder(config())
    fresh.step([(0, text)])
    np.testing.assert_array_equal(kept, fresh.step([(0, other)], all_logits=True))
    fresh.rollback(0, 170)
    np.testing.assert_array_equal(written, fresh.step([(0, other)], all_logits=True))


def test_forks_that_cannot_be_had_change_nothing() -> None:
    d = decoder(config())
    d.step([(0, tokens(70)), (1, tokens(5))])
    before = d.kv_bytes
    for arguments, message in [
        ((0, 2, 71), "cannot fork 71 tokens of sequence 0, which has 70"),
        ((0, 2, -1), "cannot fork -1 tokens"),
        ((9, 2, 1), "cannot fork 1 tokens of sequence 9, which has 0"),
        ((0, 1, 70), "cannot fork into sequence 1, which has 5 tokens"),
        ((0, 0, 70), "cannot fork into sequence 0, which has 70 tokens"),
        ((0, -1, 70), "sequence ids must not be negative, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            d.fork(*arguments)
    d.fork(0, 2, 0)
    assert (d.length(0), d.length(1), d.length(2), d.kv_bytes) == (70, 5, 0, before)


def test_a_step_beyond_the_limit_changes_nothing() -> None:
    size = page_bytes(decoder(config()))
    d = decoder(config(), kv_limit=4 * size + 100)
    assert d.kv_limit == 4 * size + 100
    first = d.step([(0, tokens(100))])
    words = f"at its limit: {4 * size} bytes are in use, kv_limit is {4 * size + 100}, and a page more takes {size}"
    d.step([(1, tokens(30)), (0, tokens(60))])
    with pytest.raises(_core.CacheFull, match=words):
        d.step([(2, tokens(129))])
    with pytest.raises(_core.CacheFull):
        d.step([(1, tokens(30)), (3, tokens(1)), (4, tokens(1))])
    assert [d.length(i) for i in range(5)] == [160, 30, 0, 0, 0]
    assert d.kv_bytes == 4 * size
    with pytest.raises(_core.CacheFull):
        d.fork(0, 7, 150)  # its last page would be a copy
    assert (d.length(7), d.kv_bytes) == (0, 4 * size)
    d.fork(0, 7, 128)
    with pytest.raises(_core.CacheFull):
        d.step([(7, tokens(1))])
    d.free(7)
    d.free(1)
    d.rollback(0, 60)
    again = d.step([(5, tokens(100))])
    np.testing.assert_array_equal(again, first)
    with pytest.raises(ValueError, match="kv_limit must not be negative, got -1"):
        decoder(config(), kv_limit=-1)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers keep what is freed")
def test_memory_is_given_back_when_sequences_end() -> None:
    d = decoder(config(layers=1, heads=64, kv_heads=64, head_dim=64, hidden=32, intermediate=32, context=40_000))
    d.step([(9, tokens(600))])  # scratch memory is had
    before = resident()
    for sequence in range(4):
        d.step([(sequence, tokens(600, seed=sequence))])
    used = d.kv_bytes - 10 * page_bytes(d)
    assert used == 40 * page_bytes(d) == 80 << 20
    grown = resident() - before
    assert grown > 0.8 * used
    for sequence in range(4):
        d.free(sequence)
    assert d.kv_bytes == 10 * page_bytes(d)
    assert resident() - before < grown - used + (34 << 20)  # a few pages are kept for the next sequence


def test_decoders_may_share_their_threads() -> None:
    target = decoder(config(), threads=2)
    draft = decoder(config(layers=1), team_of=target)
    assert draft.threads == target.threads == 2
    both = [target, draft]
    text = tokens(60)
    expected = [decoder(config(layers=layers)).step([(0, text)], all_logits=True) for layers in (2, 1)]
    results: dict[tuple[int, int], np.ndarray] = {}

    def run(which: int, sequence: int) -> None:
        results[which, sequence] = both[which].step([(sequence, text)], all_logits=True)

    workers = [threading.Thread(target=run, args=(i % 2, i)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 6
    for (which, _), logits in results.items():
        np.testing.assert_array_equal(logits, expected[which])
    del target
    both.clear()
    np.testing.assert_array_equal(draft.step([(0, text)], all_logits=True), expected[1])
    with pytest.raises(ValueError, match="threads and team_of exclude each other"):
        decoder(config(), threads=1, team_of=draft)


def test_what_the_cache_holds_is_told_while_a_step_runs() -> None:
    d = decoder(config(context=4096))
    d.step([(0, tokens(70))])
    told, steps, done = {0: 0}, 0, threading.Event()

    def run() -> None:
        nonlocal steps
        while not done.is_set():
            d.step([(1, tokens(2048))])
            d.rollback(1, 2048)
            steps += 1
            told[steps] = 0

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while max(told.values()) < 20 and steps < 20:
            assert d.kv_bytes >= 2 * page_bytes(d)
            told[steps] += 1
    finally:
        done.set()
        thread.join()
    assert max(told.values()) >= 20  # one that waits for its turn comes once in a step
    assert d.weight_bytes > 0
