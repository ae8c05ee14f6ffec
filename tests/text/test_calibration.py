"""Calibration windows out of texts, and what texts of a model's own begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byte_tokenizer import Bytes
from gossamer.errors import GossamerError
from gossamer.text.calibration import (
    cut,
    read_conversations,
    read_text,
    text_windows,
    window_length,
)


def test_windows_are_spread_over_the_text_and_follow_the_seed() -> None:
    text = "".join(chr(32 + i % 90) for i in range(1000))
    tokens = np.array(Bytes().encode(text))
    windows = text_windows(text, Bytes(), windows=7, length=50, seed=1)
    assert windows.shape == (7, 50)
    assert windows.dtype == np.int32
    text_unique = np.arange(1000)  # the same cuts of a text whose tokens tell their places
    places = text_windows(text, _Places(text_unique), windows=7, length=50, seed=1)[:, 0]
    for part, (window, start) in enumerate(zip(windows, places, strict=True)):
        np.testing.assert_array_equal(window, tokens[start : start + 50])
        assert part * 1000 // 7 <= start <= (part + 1) * 1000 // 7 - 50
    np.testing.assert_array_equal(windows, text_windows(text, Bytes(), windows=7, length=50, seed=1))
    assert not np.array_equal(windows, text_windows(text, Bytes(), windows=7, length=50, seed=2))


class _Places(Bytes):
    def __init__(self, tokens: Any) -> None:
        super().__init__()
        self.tokens = tokens

    def encode(self, text: str) -> list[int]:
        return [int(t) for t in self.tokens] if text else []


@pytest.mark.parametrize("form", [["[S]", "$A"], ["[S]", "$A", "[E]"], ["$A", "[E]"], ["[S]", "[S]", "$A"]])
def test_windows_begin_as_every_text_does(form: list[str]) -> None:
    """What a tokenizer puts before texts, as Gemma's does, whose models predict nothing without."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    from gossamer.text.tokenizer import Tokenizer

    letters = {"[S]": 0, "[E]": 1} | {letter: at for at, letter in enumerate("abcdefghij", 2)}
    backend = Backend(models.WordLevel(letters, "a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("[S]", 0), ("[E]", 1)])
    tokenizer, begin = Tokenizer(backend), [0] * form.count("[S]")
    text = "abcdefghij" * 9
    found = text_windows(text, tokenizer, windows=3, length=20)
    assert found.shape == (3, 20)
    windows, count = cut(text, tokenizer, 20)
    assert count == len(begin)
    inside = [token for window in windows for token in window[count:].tolist()]
    assert begin + inside == tokenizer.encode(text)
    for window in (*found, *windows):
        assert window[:count].tolist() == begin
        steps = np.diff(window[count:][window[count:] > 1])  # an end token may stand behind the last letter
        assert set(steps.tolist()) <= {1, -9}
        assert len(window) <= 20


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


def test_lines_end_in_one_way_whatever_wrote_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n\r\nthree \r four\n".encode())
    assert read_text(tmp_path / "a.txt") == "one\ntwo\n\nthree \r four\n"


def test_lines_of_json_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those who have texts as fields mean the texts, and would measure and train on the keys, too."""
    lines = '{"text": "one"}\n{"text": "two"}\n'
    for name in ("a.jsonl", "b.txt", "c.ndjson"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    assert read_text(tmp_path / "a.jsonl") == read_text(tmp_path / "b.txt") == lines
    told = "is taken for text as it stands, keys and quotes of its JSON too; texts alone are what is meant here"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'a.jsonl'}: {told}"]
    read_text(tmp_path)
    assert len(caplog.records) == 3


def test_conversations_are_read_by_blocks_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "said.txt"
    path.write_text("\n one \ntwo\n\n \n\nthree\n", encoding="utf-8")
    assert read_conversations(path) == [["one", "two"], ["three"]]
    path.write_text("\ufeffone \u2028 same\r\nt\x0cwo\r\n\r\nthree\x85\n", encoding="utf-8")
    assert read_conversations(path) == [["one \u2028 same", "t\x0cwo"], ["three"]]
    assert read_text(path).startswith("one ")
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(GossamerError, match=r"said\.txt: holds no questions"):
        read_conversations(path)


def test_windows_fit_the_model(caplog: pytest.LogCaptureFixture) -> None:
    assert window_length(None, 512, 2048) == window_length(None, 512, 512) == 512
    assert window_length(512, 64, 512) == 512
    assert caplog.messages == []
    assert window_length(None, 512, 256) == 256
    assert caplog.messages == ["the model holds 256 tokens, fewer than the usual 512: length is 256"]
    assert window_length(None, 128, 24, "-n", behind=8) == 24
    assert caplog.messages[1:] == ["the model holds 24 tokens behind 8 others, fewer than the usual 128: -n is 24"]
    with pytest.raises(GossamerError, match=r"--length 257 is more than the model's context of 256 tokens"):
        window_length(257, 64, 256, "--length")
