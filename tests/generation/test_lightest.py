"""Bytes weighed against divergence: the lightest types within the bound, in order, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gossamer import GossamerError
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.generation.lightest import lightest
from tiny import tiny_llama

TEXT = "The quick brown fox jumps over the lazy dog, and some more words follow it. " * 4


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "source", sparsity=0.5)


def test_the_first_within_the_bound_is_taken(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    _, all_tried = lightest(checkpoint, TEXT, bound=1e-12)
    assert [(one.weights, one.head) for one in all_tried][-1] == ("stored", "stored")
    assert [one.bytes for one in all_tried] == sorted(one.bytes for one in all_tried)
    assert all_tried[0].divergence > all_tried[-1].divergence
    assert all_tried[-1].divergence < 1e-6
    for at in range(len(all_tried)):
        packed, tried = lightest(checkpoint, TEXT, bound=all_tried[at].divergence * 1.001)
        first = next(one for one in all_tried if one.divergence <= all_tried[at].divergence * 1.001)
        assert (tried[-1].weights, tried[-1].head) == (first.weights, first.head)
        kinds = {weight.type for name, weight in packed.weights.items() if "." in name}
        assert kinds == ({"f32"} if first.weights == "stored" else {first.weights})


def test_a_type_that_is_given_is_kept(source: Path) -> None:
    _, tried = lightest(open_checkpoint(source), TEXT, bound=1e-12, weights="int8")
    assert {one.weights for one in tried} == {"int8"}
    assert {one.head for one in tried} == {"int4", "int8", "stored"}


@pytest.mark.parametrize("type", ["bf16", "f32", "f16"])
def test_a_type_that_is_never_tried_otherwise_is_kept_too(source: Path, type: str) -> None:
    checkpoint = open_checkpoint(source)
    packed, tried = lightest(checkpoint, TEXT, bound=1e-12, weights=type)
    assert [(one.weights, one.head) for one in tried] == [(type, "int4"), (type, "int8"), (type, "stored")]
    assert {weight.type for name, weight in packed.weights.items() if "." in name} == {type}
    packed, tried = lightest(checkpoint, TEXT, bound=1e-12, head=type)
    assert {(one.weights, one.head) for one in tried} == {("int4", type), ("int8", type), ("stored", type)}
    assert packed.weights["head"].type == type


def test_a_text_is_needed(source: Path) -> None:
    with pytest.raises(GossamerError, match="at least 2 tokens"):
        lightest(open_checkpoint(source), "")


def test_the_command_says_what_was_tried(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    command = ["convert", str(source), str(tmp_path / "out"), "--text", str(tmp_path / "t.txt"), "--divergence", "9"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["head"] for one in document["tried"]] == ["int4"]  # whose blocks depends on what is fast here
    assert main([*command, "--force"]) == 0
    assert "the last one is taken" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--divergence", "1"], ["--text", "x", "--weights", "int8", "--head", "int8"]])
def test_options_that_mean_nothing_are_refused(source: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(source), str(tmp_path / "out"), *options])
    assert stopped.value.code == 2
