"""Options of how a text is chosen, on the command line."""

from __future__ import annotations

import io

import pytest

from fakes import fake_model
from gossamer.cli import main


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(("temperature", "noted"), [("0", True), ("1", False)])
def test_options_of_drawing_are_noted_where_nothing_is_drawn(
    command: str,
    temperature: str,
    noted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gossamer.loading.load", lambda _name, **_options: fake_model(template=True))
    monkeypatch.setattr("sys.stdin", io.StringIO("a"))
    assert main([command, "-n", "1", "--top-k", "1", "--seed", "3", "--temperature", temperature]) == 0
    note = "gossamer: note: --top-k, --seed: nothing is drawn at temperature 0, and this changes nothing"
    assert (note in capsys.readouterr().err) == noted


@pytest.mark.parametrize(
    ("options", "noted"), [([], True), (["--beams", "2"], False), (["--temperature", "1"], False)], ids=str
)
def test_several_texts_that_are_one_are_noted(
    options: list[str], noted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gossamer.loading.load", lambda _name, **_options: fake_model())
    assert main(["generate", "ab", "-n", "2", "--completions", "2", *options]) == 0
    out, err = capsys.readouterr()
    assert (out == "[1]\ncd\n[2]\ncd\n") >= noted
    note = "note: --completions: at temperature 0 all texts are the same one; give --temperature, or --beams"
    assert (note in err) == noted
