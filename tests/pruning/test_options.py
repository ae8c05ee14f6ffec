"""What is asked of pruning, and which of it makes sense together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gossamer.errors import GossamerError
from gossamer.pruning import prune
from tiny import tiny_llama


def test_what_a_method_has_no_use_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, text = tiny_llama(tmp_path / "dense"), tmp_path / "text.txt"
    text.write_text("The spider spins a thread of gossamer. " * 60, encoding="utf-8")
    prune(source, tmp_path / "one", method="magnitude", sparsity=0.5)
    assert not caplog.messages
    prune(source, tmp_path / "two", method="magnitude", sparsity=0.5, calibration=text, windows=4)
    assert caplog.messages == ["calibration, windows: method magnitude reads no text, so that this does nothing"]


def test_zeros_of_a_pattern_are_taken_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_llama(tmp_path / "dense")
    prune(source, tmp_path / "first", method="magnitude", pattern=(2, 4))
    report = tmp_path / "first" / "gossamer_prune.json"
    again = prune(source, tmp_path / "again", method="magnitude", allocation=report)
    assert (again.reached, again.pattern) == (0.5, None)
    line = f"{report}: is of zeros in a pattern, 2:4: how many there are is taken, and not where"
    assert [record.getMessage() for record in caplog.records] == [line]


def test_reports_that_do_not_say_the_zeros_are_refused(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "dense")
    path = tmp_path / "zeros.json"
    layers = dict.fromkeys(prune(source, tmp_path / "one", method="magnitude", sparsity=0.5).layers, 0.5)
    name = next(iter(layers))
    for content, message in (
        ("[]", "must hold a JSON object"),
        ("{", "not valid JSON"),
        (json.dumps({"layers": 3}), "is about another model"),
        (json.dumps({"layers": {**layers, "another": 0.5}}), "is about another model: only one of the two has another"),
        (json.dumps({"layers": {**layers, name: 1.0}}), "zeros must be at least 0 and below 1, got 1.0"),
        (json.dumps({"layers": {**layers, name: "0.5"}}), "zeros must be at least 0 and below 1, got '0.5'"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(GossamerError, match=message):
            prune(source, tmp_path / "two", method="magnitude", allocation=path)
    with pytest.raises(GossamerError, match=r"zeros\.json: says the zeros already"):
        prune(source, tmp_path / "two", method="magnitude", allocation=path, sparsity=0.5)
    with pytest.raises(GossamerError, match="unknown allocation 'none'"):
        prune(source, tmp_path / "two", sparsity=0.5, allocation="none")
    assert not (tmp_path / "two").exists()
