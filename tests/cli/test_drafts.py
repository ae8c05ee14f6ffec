"""Commands with drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import fake_model
from gossamer.cli import main


def test_drafts_are_taken_from_a_corpus_and_told_by_stats(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["", "a", "b", "c", "d", "e"]
    (tmp_path / "corpus.txt").write_text("aaaabcdeabcde")
    for options, drafted in ((["--draft", "off"], False), (["--draft-corpus", str(tmp_path / "corpus.txt")], True)):
        model = fake_model("aaaabcdeabcde", words=words)
        monkeypatch.setattr("gossamer.loading.load", lambda *_, model=model, **__: model)
        assert main(["generate", "aaa", "--raw", "-n", "8", "--stats", *options]) == 0
        out, err = capsys.readouterr()
        assert out == "abcdeabc\n"
        assert ("drafted tokens came true" in err) == drafted
        assert "ms each" in err
    assert main(["generate", "aaa", "--raw", "--draft", "off", "--draft-corpus", "x.txt"]) == 1
    assert "x.txt: nothing is drafted from it with draft off" in capsys.readouterr().err
