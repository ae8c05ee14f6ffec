"""Packed folders on another processor: told in one line, packed anew without a changed value."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer import GossamerError
from gossamer.cli import main
from gossamer.packing import planner
from gossamer.packing.convert import convert
from gossamer.packing.folder import read_packed
from gossamer.packing.planner import usual_machine
from gossamer.packing.replan import PLANNED_FOR, advise, replanned, this_processor
from packed import read_document, write_document
from tiny import tiny_llama

IDS = [1, 5, 9, 2, 7]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    source = tiny_llama(tmp_path / "source", sparsity=0.6)
    convert(source, tmp_path / "packed", weights="int8")
    return tmp_path / "packed"


def elsewhere(folder: Path) -> Path:
    """Has the folder say that it was packed on another processor."""
    document = read_document(folder)
    document["info"][PLANNED_FOR] = {"processor": "Imaginary 9000", "isa": "avx2"}
    write_document(folder, document)
    return folder


def dense_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which expanding is slow: nothing beats dense."""
    usual = usual_machine("avx2")
    slow = replace(usual, rates={key: rate / (1 if key[0] == "dense" else 50) for key, rate in usual.rates.items()})
    monkeypatch.setattr(planner, "this_machine", lambda *_, **__: slow)


def test_a_folder_says_what_it_was_planned_for(packed: Path, tmp_path: Path) -> None:
    assert read_packed(packed).info[PLANNED_FOR] == this_processor()
    convert(tmp_path / "source", tmp_path / "asked", weights="int8", format="csr")
    assert PLANNED_FOR not in read_packed(tmp_path / "asked").info


def test_no_word_where_it_was_packed_or_where_the_choice_is_the_same(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dense_here(patch)
        assert advise(read_packed(packed)) is None  # packed here: what was chosen stands
    assert advise(read_packed(elsewhere(packed))) is None


def test_another_processor_is_told_in_one_line(
    packed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dense_here(monkeypatch)
    with caplog.at_level(logging.WARNING, "gossamer"):
        gossamer.load(elsewhere(packed), threads=1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Imaginary 9000 (avx2)" in line
    chosen = {weight.format for weight in read_packed(packed).weights.values()} - {"dense"}  # by what is measured here
    assert all(f"{format} that should be dense" in line for format in chosen)
    assert "--replan" in line


def test_replanning_changes_formats_and_no_value(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gossamer.load(packed, threads=1).logits(IDS)
    assert any(weight.format != "dense" for weight in read_packed(packed).weights.values())
    dense_here(monkeypatch)
    elsewhere(packed)
    assert main(["convert", "--replan", str(packed), str(tmp_path / "anew")]) == 0
    anew = read_packed(tmp_path / "anew")
    assert {weight.format for weight in anew.weights.values()} == {"dense"}
    assert anew.info[PLANNED_FOR] == this_processor()
    for name, weight in read_packed(packed).weights.items():
        np.testing.assert_array_equal(weight.unpack(), anew.weights[name].unpack(), err_msg=name)
    np.testing.assert_array_equal(gossamer.load(tmp_path / "anew", threads=1).logits(IDS), before)


def test_replanning_in_place_needs_force(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--replan", str(packed), str(packed)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["convert", "--replan", "--force", str(packed), str(packed)]) == 0
    assert gossamer.load(packed, threads=1).logits(IDS).shape


@pytest.mark.parametrize("kind", ["f32", "bf16", "int4"])
def test_every_type_is_replanned_exactly(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(tiny_llama(tmp_path / "source", sparsity=0.6), tmp_path / "packed", weights=kind, group=32)
    dense_here(monkeypatch)
    anew = replanned(tmp_path / "packed")
    for name, weight in read_packed(tmp_path / "packed").weights.items():
        assert weight.type == anew.weights[name].type
        np.testing.assert_array_equal(weight.unpack(), anew.weights[name].unpack(), err_msg=name)


@pytest.mark.parametrize("options", [["--weights", "int4"], ["--group", "32"], ["--head", "int8"], ["--format", "csr"]])
def test_replanning_keeps_values_so_it_takes_no_types(packed: Path, options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "--replan", *options, str(packed), str(tmp_path / "anew")])
    assert stopped.value.code == 2


@pytest.mark.usefixtures("packed")
def test_a_checkpoint_is_not_replanned(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="is not packed"):
        replanned(tmp_path / "source")


@pytest.mark.usefixtures("packed")
def test_zeros_that_do_not_pay_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense_here(monkeypatch)
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "slow"), "--weights", "int8"]) == 0
    assert "no faster here than dense" in capsys.readouterr().out


def test_garbled_provenance_is_left_alone(packed: Path) -> None:
    model: Any = read_packed(packed)
    model.info[PLANNED_FOR] = "somewhere"
    assert advise(model) is None
