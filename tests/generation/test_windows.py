"""Calibration windows that a model writes itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from byte_tokenizer import EOS, Bytes
from gossamer.arch.llama import Sizes
from gossamer.generation.windows import sampled_windows
from gossamer.text.calibration import is_document
from reference_model import ReferenceModel, random_tensors


class Decoder:
    """The reference model behind the engine's step protocol; counts the sequences that it holds."""

    def __init__(self) -> None:
        config = Sizes(
            hidden=16,
            layers=1,
            heads=2,
            kv_heads=1,
            head_dim=8,
            intermediate=24,
            vocab=260,
            context=256,
            norm_eps=1e-5,
            inv_freq=(1.0, 0.1, 0.01, 0.001),
            tied=True,
        ).describe()
        self.model = ReferenceModel(config, random_tensors(config))
        self.sequences: dict[int, list[int]] = {}
        self.largest_batch = 0

    def step(self, batch: list[tuple[int, Any]]) -> Any:
        self.largest_batch = max(self.largest_batch, len(batch))
        for seq, tokens in batch:
            assert len(tokens) > 0
            self.sequences.setdefault(seq, []).extend(int(t) for t in tokens)
        logits = np.stack([self.model.logits(self.sequences[seq])[-1] for seq, _ in batch])
        logits[:, EOS] += 9.0  # so that texts end now and then
        return logits.astype(np.float32)

    def free(self, seq: int) -> None:
        self.sequences.pop(seq, None)


def test_samples_fill_all_windows_and_are_freed() -> None:
    decoder, calls = Decoder(), []
    windows = sampled_windows(
        decoder, Bytes(), windows=51, length=90, seed=7, progress=lambda *call: calls.append(call[:2])
    )
    assert windows.shape == (51, 90)
    assert decoder.largest_batch == 48
    assert not decoder.sequences
    assert calls[-1] == (51 * 90, 51 * 90)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert (windows[::2, 0] == 1).all()  # questions through the template
    assert (windows[1::2, 0] != 1).all()  # openings of documents
    assert (windows == EOS).any()
    for row in windows[::2]:
        for end in np.flatnonzero(row[:-1] == EOS):
            assert row[end + 1] == 1  # an answer's end is followed by the next question


def test_conversations_go_on_turn_by_turn() -> None:
    said = [["first", "second", "third"]]
    windows = sampled_windows(Decoder(), Bytes(), windows=4, length=160, conversations=said, documents=0)
    turns = {0: "\1first\2", 1: "\n\1second\2", 2: "\n\1third\2"}
    counts = [0, 0, 0]
    for window in windows.tolist():
        place = 0
        for turn in itertools.cycle(turns):
            opening = Bytes().encode(turns[turn])
            assert window[place : place + len(opening)] == opening[: len(window) - place]
            if EOS not in window[place + len(opening) :]:
                break
            place = window.index(EOS, place + len(opening)) + 1
            counts[turn] += 1
            if place == len(window):
                break
    assert min(counts) > 0


def test_documents_have_their_share_of_the_windows() -> None:
    assert [is_document(i, 0.5) for i in range(4)] == [False, True, False, True]
    assert [sum(is_document(i, share) for i in range(40)) for share in (0, 0.125, 1)] == [0, 5, 40]
    windows = sampled_windows(Decoder(), Bytes(), windows=8, length=8, documents=0.25)
    assert (windows[:, 0] != 1).tolist() == [i % 4 == 3 for i in range(8)]


def test_a_low_temperature_takes_the_likeliest() -> None:
    cold = sampled_windows(Decoder(), Bytes(), windows=2, length=40, temperature=1e-4)
    model = Decoder()
    for window in cold.tolist():
        start = window.index(2) + 1 if window[0] == 1 else 20  # behind the opening
        logits = model.step([(start, window[:-1])])
        assert window[-1] == logits[0].argmax() or window[-2] == EOS or 1 in window[start:]


def test_samples_follow_the_seed_and_not_the_batch() -> None:
    one = sampled_windows(Decoder(), Bytes(), windows=50, length=80, seed=3)
    np.testing.assert_array_equal(one, sampled_windows(Decoder(), Bytes(), windows=50, length=80, seed=3))
    np.testing.assert_array_equal(one[:2], sampled_windows(Decoder(), Bytes(), windows=2, length=80, seed=3))
    assert not np.array_equal(one, sampled_windows(Decoder(), Bytes(), windows=50, length=80, seed=4))
    assert (sampled_windows(Decoder(), Bytes(has_chat_template=False), windows=4, length=8)[:, 0] != 1).all()


def test_samples_have_the_softmax_frequencies() -> None:
    class Constant(Decoder):
        def step(self, batch: list[tuple[int, Any]]) -> Any:
            return np.tile(np.log(np.array([1, 2, 3, 0.0001, 4, 0.0001], dtype=np.float32)), (len(batch), 1))

    windows = sampled_windows(Constant(), Bytes(has_chat_template=False), windows=16, length=1000, seed=0)
    # Beyond the opening, which is at most 20 bytes; all but 1 in 5000 of the rest are draws.
    draws = windows[:, 20:].reshape(-1)
    draws = draws[np.isin(draws, [0, 1, 2, 4])]
    expected = np.array([0.1, 0.2, 0.3, 0.4])
    counts = np.array([(draws == t).sum() for t in (0, 1, 2, 4)])
    deviations = np.sqrt(len(draws) * expected * (1 - expected))
    assert (np.abs(counts - len(draws) * expected) < 4 * deviations).all()
