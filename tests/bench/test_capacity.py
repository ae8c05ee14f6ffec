"""What the simulation says of loads, held against loads that it made itself, and how it is drawn."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT

pytest.importorskip("simpy")

STEPS = {"tokens": [1, 16], "base": [0.01, 0.02], "kv": [1e-6, 1e-6], "weights": 0.008, "measured": True}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


def measured(bench: Any, *beside: tuple[float, float]) -> dict[str, Any]:
    """What two replicas would have measured whose steps take a bit more than the table says."""
    replicas, capacity = bench("replicas"), bench("capacity")
    steps = replicas.Steps(capacity.table_of(STEPS), beside)
    asked: list[dict[str, Any]] = [{"clients": clients, "prompt": 100, "answer": 128} for clients in (2, 8, 32)]
    for each in asked:
        each["seconds"] = capacity.answer_seconds(steps, each, 2)
    loads = []
    for rate in (4.0, 8.0, 11.0):
        load = replicas.Load(rate, [32, 300], [64, 128])
        texts = list(replicas.arrivals(load, 2000, random.Random(9)))
        played = replicas.play_texts(steps, texts, 2)
        own = {"rate": rate, "replicas": 2, "texts": texts, "around": [{"steps": STEPS, "asked": asked}] * 2}
        found = {"tokens_per_second": played.tokens_per_second, "p50": played.latency(50), "p95": played.latency()}
        loads.append(own | found)
    return {"loads": loads}


def test_the_check_finds_what_steps_take_beside_the_engine(bench: Any) -> None:
    beside = ((1, 0.004), (4, 0.005), (16, 0.03))  # a few texts take little more than one
    rows = bench("capacity").check(measured(bench, *beside))
    for found, made in zip(rows[0]["beside"], beside, strict=True):
        assert found == pytest.approx(made, rel=0.02)
    for row in rows:
        assert row["p95_off"] == pytest.approx(0, abs=0.02)  # the same texts came
        assert row["tokens_per_second_off"] == pytest.approx(0, abs=0.02)


def test_steps_are_those_around_the_load(bench: Any) -> None:
    document = measured(bench)
    before, behind = ({**STEPS, "base": [part * base for base in STEPS["base"]]} for part in (0.5, 1.5))
    for load in document["loads"]:
        load["around"] = [{**load["around"][0], "steps": before}, {**load["around"][1], "steps": behind}]
    for row in bench("capacity").check(document):
        assert row["p95_off"] == pytest.approx(0, abs=0.02)


def test_the_check_tells_what_is_off(bench: Any) -> None:
    document = measured(bench)
    document["loads"][1]["tokens_per_second"] *= 1.3
    document["loads"][2]["p95"] *= 1.6
    rows = bench("capacity").check(document)
    assert [row["tokens_per_second_good"] for row in rows] == [True, False, True]
    assert [row["p95_good"] for row in rows] == [True, True, False]


def test_fleets(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity, replicas = bench("capacity"), bench("replicas")
    monkeypatch.setattr(capacity, "FLEETS", (1, 8))
    monkeypatch.setattr(capacity, "LOADS", (0.5, 4))
    table = capacity.table_of(STEPS)
    assert capacity.rows_of(table) == {**STEPS, **{name: tuple(STEPS[name]) for name in ("tokens", "base", "kv")}}  # type: ignore[arg-type]
    found = capacity.kind_of_fleet(replicas.Steps(table), 300)
    seconds = [row["p95"] for row in found["by_busy"]]
    assert seconds[-1] > seconds[0]
    counts = [row["replicas"] for row in found["by_load"]]
    assert counts == sorted(counts)
    assert counts[-1] >= 4
    hours = [row["machine_hours"] for row in found["by_busy"]]
    assert hours[-1] < hours[0]
    capacity.draw({"one": json.loads(json.dumps(found))}, tmp_path / "picture.svg")
    assert "one" in (tmp_path / "picture.svg").read_text()
