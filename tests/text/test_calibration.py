"""Calibration windows: from texts, and from a model's own samples."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.arch.llama import Sizes
from gossamer.errors import GossamerError
from gossamer.text.calibration import (
    is_document,
    read_conversations,
    read_text,
    sampled_windows,
    text_windows,
    window_length,
)
from reference_model import ReferenceModel, random_tensors

EOS = 3


class Bytes:
    """A tokenizer of bytes, moved up by 4; chats are put between 1 and 2."""

    eos_ids = frozenset({EOS})

    def __init__(self, has_chat_template: bool = True) -> None:
        self.has_chat_template = has_chat_template

    def encode(self, text: str, special: bool = True) -> list[int]:  # noqa: ARG002 - as the protocol has it
        return [b if b < 4 else b + 4 for b in text.encode()]

    def render(self, messages: list[dict[str, str]]) -> str:
        return "".join({"user": "\1{}\2", "assistant": "{}\3\n"}[m["role"]].format(m["content"]) for m in messages)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode(self.render(messages))


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


def test_windows_are_spread_over_the_text_and_follow_the_seed() -> None:
    text = "".join(chr(32 + i % 90) for i in range(1000))
    tokens = np.array(Bytes().encode(text))
    windows = text_windows(text, Bytes(), windows=7, length=50, seed=1)
    assert windows.shape == (7, 50)
    assert windows.dtype == np.int32
    text_unique = np.arange(1000)  # the same cuts of a text whose tokens tell their places
    places = text_windows("", _Places(text_unique), windows=7, length=50, seed=1)[:, 0]
    for part, (window, start) in enumerate(zip(windows, places, strict=True)):
        np.testing.assert_array_equal(window, tokens[start : start + 50])
        assert part * 1000 // 7 <= start <= (part + 1) * 1000 // 7 - 50
    np.testing.assert_array_equal(windows, text_windows(text, Bytes(), windows=7, length=50, seed=1))
    assert not np.array_equal(windows, text_windows(text, Bytes(), windows=7, length=50, seed=2))


class _Places(Bytes):
    def __init__(self, tokens: Any) -> None:
        super().__init__()
        self.tokens = tokens

    def encode(self, _: str) -> list[int]:
        return [int(t) for t in self.tokens]


def test_a_short_text_gives_as_many_windows_as_fit_and_a_shorter_one_an_error() -> None:
    assert text_windows("x" * 49, Bytes(), windows=9, length=10).shape == (4, 10)
    assert text_windows("x" * 10, Bytes(), windows=9, length=10).shape == (1, 10)
    with pytest.raises(GossamerError, match=r"notes\.txt has 9 tokens, calibration needs at least one window of 10"):
        text_windows("x" * 9, Bytes(), length=10, source="notes.txt")


def test_folders_are_read_in_order_and_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first é", encoding="utf-8")
    (tmp_path / "sub" / "c.txt").write_text("third", encoding="utf-8")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    assert read_text(tmp_path) == "first é\n\nsecond\n\nthird"
    assert read_text(tmp_path / "b.txt") == "second"
    (tmp_path / "sub" / "d.bin").write_bytes(b"abc\xff")
    with pytest.raises(GossamerError, match=r"d\.bin: not UTF-8 text: byte 3"):
        read_text(tmp_path)
    with pytest.raises(GossamerError, match=r"none\.txt: No such file"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GossamerError, match="empty: the folder holds no text files"):
        read_text(tmp_path / "empty")


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


def test_conversations_are_read_by_blocks_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "said.txt"
    path.write_text("\n one \ntwo\n\n \n\nthree\n", encoding="utf-8")
    assert read_conversations(path) == [["one", "two"], ["three"]]
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(GossamerError, match=r"said\.txt: holds no questions"):
        read_conversations(path)


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


def test_windows_fit_the_model(caplog: pytest.LogCaptureFixture) -> None:
    assert window_length(None, 512, 2048) == window_length(None, 512, 512) == 512
    assert window_length(512, 64, 512) == 512
    assert caplog.messages == []
    assert window_length(None, 512, 256) == 256
    assert caplog.messages == ["the model holds 256 tokens, fewer than the usual 512: length is 256"]
    with pytest.raises(GossamerError, match=r"--length 257 is more than the model's context of 256 tokens"):
        window_length(257, 64, 256, "--length")
