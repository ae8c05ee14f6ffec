"""The measured roof: what is derived from figures, what is kept, and what a kept file may hold. No time is tested."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

import gossamer
from gossamer import _core
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.formats import FORMATS
from gossamer.generation.stats import Stats
from gossamer.machine import format_rates
from gossamer.machine import roofline as module
from gossamer.machine.format_rates import FormatRate
from gossamer.machine.roofline import KernelRate, Reads, Roofline, cached

KERNELS = _core.kernels()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[dict[str, Any]]:
    """Measurements made, each invented: memory reads as many GB/s as measurements came before, plus ten."""
    made: list[dict[str, Any]] = []
    assert not home.exists()

    def measure(machine: dict[str, Any], progress: Any) -> Roofline:
        progress(0, 1, "inventing")
        made.append(machine)
        return figures(machine, memory=9.0 + len(made))

    monkeypatch.setattr(module, "_measure", measure)
    return made


def figures(machine: dict[str, Any], memory: float = 10.0) -> Roofline:
    return Roofline(
        machine=machine,
        date="2026-01-02T03:04:05+00:00",
        last_level_bytes=1000,
        memory_bytes=1 << 20,
        reads=(Reads(1, memory / 2, 20.0), Reads(2, memory, 40.0)),
        kernels=(
            KernelRate("dense_linear_int8_a8__scalar", True, 0.0, 1.0, 50.0),
            KernelRate("bitmap_linear_int8_a8__scalar", True, 0.5, 0.625, 40.0, wins_below=40.0),
            KernelRate("nm_linear_int8_a8__scalar", True, 0.5, 0.625, 60.0, wins_below=None),
        ),
    )


def files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def test_a_measurement_is_kept(calls: list[dict[str, Any]], home: Path) -> None:
    assert cached() is None
    told: list[str] = []
    first = gossamer.roofline(progress=lambda *step: told.append(step[2]))
    assert gossamer.roofline() == first == cached()
    assert first.notes == ()
    assert (len(calls), told, len(files(home))) == (1, ["inventing"], 1)
    assert gossamer.roofline(refresh=True).reads[1].memory == 11.0
    assert cached() == gossamer.roofline() != first
    assert len(calls) == 2
    assert len(files(home)) == 1  # nothing is left half-written


def test_other_threads_and_other_builds_are_other_measurements(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    default = _core.default_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(default + 1))
    gossamer.roofline(threads=default)
    gossamer.roofline()
    assert len(calls) == 1
    gossamer.roofline(threads=default + 1)
    assert [machine["threads"] for machine in calls] == [default, default + 1]
    monkeypatch.setattr(_core, "__source_hash__", "another")
    assert cached() is None
    monkeypatch.undo()
    monkeypatch.setenv("GOSSAMER_HOME", str(home))
    assert cached() is not None


def change(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **values}))


ROW = {"threads": 1, "memory": 1.0, "cache": 1.0}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text(path.read_text()[:200]),
        lambda path: change(path, schema=0),
        lambda path: change(path, machine={"processor": "another"}),
        lambda path: change(path, reads=[]),
        lambda path: change(path, kernels=[]),
        lambda path: change(path, reads=3),
        lambda path: change(path, reads=[{**ROW, "memory": "fast"}]),
        lambda path: change(path, reads=[{**ROW, "cache": -1.0}]),
        lambda path: change(path, reads=[{**ROW, "cache": math.inf}]),
        lambda path: change(path, reads=[{**ROW, "threads": True}]),
        lambda path: change(path, date=5),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_file_is_measured_again(calls: list[dict[str, Any]], home: Path, damage: Any) -> None:
    gossamer.roofline()
    (path,) = files(home)
    damage(path)
    assert cached() is None
    again = gossamer.roofline()
    assert len(calls) == 2
    assert again.notes[0].startswith(f"{path}: cannot be used, so it is measured again: ")
    if not path.is_dir():
        assert gossamer.roofline() == again == cached()
        assert gossamer.roofline().notes == ()


def test_a_home_that_cannot_be_written_fails_nothing(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path / "file"))
    assert main(["roofline"]) == 0
    out, err = capsys.readouterr()
    assert "bitmap_linear_int8_a8__scalar" in out
    assert "cannot be kept for the next time" in err
    assert len(err.splitlines()) == len(calls) + 1  # the note that it cannot be read, and that it cannot be kept


def test_the_table_tells_threads_and_where_sparse_wins(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["roofline"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2", "10.0", "40.0"] in lines
    assert ["dense_linear_int8_a8__scalar", "0%", "8.00", "50.0", "50.0"] in lines
    assert ["bitmap_linear_int8_a8__scalar", "50%", "5.00", "40.0", "25.0", "below", "40.0"] in lines
    assert ["nm_linear_int8_a8__scalar", "50%", "5.00", "60.0", "37.5", "always"] in lines
    assert len(calls) == 1


def test_json_is_one_document(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", "--json", "--threads", "1", "--refresh"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["threads"] == 1
    assert document["reads"][1] == {"threads": 2, "memory": 10.0, "cache": 40.0}
    assert document["kernels"][1]["gigabytes_per_second"] == 25.0
    assert len(calls) == 1


@pytest.mark.usefixtures("calls")
def test_refresh_measures_the_formats_of_known_types_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def measure(type: str, _cached: bool, _: Any) -> tuple[format_rates.Rates, bool]:
        made.append(type)
        points = {
            format: [1e-3 * (1 + place) for place in range(len(format_rates.zeros(format)))] for format in FORMATS
        }
        rates = {
            format: tuple(FormatRate(float(place), time * len(made)) for place, time in enumerate(times))
            for format, times in points.items()
        }
        return rates, len(made) < 3

    monkeypatch.setattr(format_rates, "_measure", measure)
    assert main(["roofline"]) == 0
    assert made == []
    format_rates.measured("int4")
    assert main(["roofline"]) == 0
    assert ["int4", "memory", "bitmap", "90%", "1000.0"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]
    assert made == ["int4"]
    assert main(["roofline", "--refresh", "--json"]) == 0
    assert made == ["int4", "int4"]
    rows = json.loads(capsys.readouterr().out)["formats"]
    row = {"type": "int4", "weights_in": "memory", "format": "bitmap", "zeros": 0.9, "positions_per_second": 500.0}
    assert row in rows
    assert main(["roofline", "--refresh"]) == 0  # never settles
    assert "int4" in capsys.readouterr().err
    assert format_rates.kept()["int4", False]["dense"][0].seconds == 2e-3


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--threads", "x"], ["model"]])
def test_wrong_usage_measures_nothing(calls: list[dict[str, Any]], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["roofline", *arguments])
    assert (stopped.value.code, calls) == (2, [])


def test_threads_below_zero_are_refused(home: Path) -> None:
    with pytest.raises(GossamerError, match="threads must be from 0 to 1024, got -1"):
        gossamer.roofline(threads=-1)
    assert not files(home)


def test_the_roof_is_that_of_where_the_bytes_lie() -> None:
    measured = figures({})
    assert (measured.roof(1000), measured.roof(1001)) == (40.0, 10.0)


def test_stats_tell_the_share_of_the_roof_once_it_is_known(calls: list[dict[str, Any]]) -> None:
    stats = Stats(prompt_tokens=1, weight_bytes=10**9, new_tokens=11, prefill_seconds=1.0, decode_seconds=2.0)
    assert stats.percent_of_roof is None
    assert stats.to_dict()["percent_of_roof"] is stats.to_dict()["roof_gigabytes_per_second"] is None
    assert "roof" not in stats.text()
    assert not calls
    gossamer.roofline()
    assert stats.percent_of_roof == pytest.approx(50.0)  # ten tokens in two seconds: 5 of 10 GB/s
    assert stats.to_dict()["roof_gigabytes_per_second"] == 10.0
    assert "5.0 GB/s, 50% of the roof of 10.0" in stats.text().splitlines()[1]


@pytest.mark.parametrize(
    ("rate", "bytes_", "expected"),
    [(40.0, 0.5, 40.0), (50.0, 0.5, None), (60.0, 0.5, None), (10.0, 0.5, 10.0), (40.0, 1.0, 0.0), (60.0, 1.5, 0.0)],
)
def test_where_sparse_wins(rate: float, bytes_: float, expected: float | None) -> None:
    dense = KernelRate("dense_linear_int8_a8__scalar", True, 0.0, 1.0, 50.0)
    sparse = KernelRate("bitmap_linear_int8_a8__scalar", True, 0.5, bytes_, rate)
    (_, compared) = module._against_dense([dense, sparse])
    assert compared.wins_below == expected
    if expected:  # the times a position, at a bandwidth on either side
        for bandwidth, wins in ((expected * 0.99, True), (expected * 1.01, False)):
            times = [max(1 / r.positions_per_second, r.bytes_per_position / bandwidth) for r in (sparse, dense)]
            assert (times[0] < times[1]) is wins


def test_a_kernel_without_a_dense_one_of_its_tier_is_compared_with_the_one_that_runs() -> None:
    dense = [
        KernelRate("dense_linear_bf16_bf16__avx2", False, 0.0, 2.0, 10.0),
        KernelRate("dense_linear_bf16_bf16__avx512_bf16", True, 0.0, 2.0, 30.0),
    ]
    sparse = [
        KernelRate("csr_linear_bf16_bf16__avx2", True, 0.95, 0.25, 20.0),
        KernelRate("csr_linear_bf16_bf16__avx512", True, 0.95, 0.25, 20.0),
    ]
    assert [rate.wins_below for rate in module._against_dense(dense + sparse)] == [None, None, None, 40.0]


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (8, [*range(1, 9)]), (9, [*range(1, 10)])])
def test_thread_counts(most: int, counts: list[int]) -> None:
    assert module._thread_counts(most) == counts


def test_many_threads_are_not_all_counted() -> None:
    assert module._thread_counts(100) == [*range(1, 9), 16, 32, 64, 100]
    assert module._thread_counts(64)[-2:] == [32, 64]


def test_caches_are_those_of_the_system() -> None:
    caches = module._caches()
    for sizes in caches.values():
        assert all(size >= 1 << 10 for size in sizes)
    assert module._available_memory() > 0


@pytest.mark.parametrize("format_", ["dense", "bitmap", "csr", "nm"])
def test_weights_are_of_the_size_and_the_zeros_that_are_told(format_: str) -> None:
    weight = module._weight(format_, "int8", 100_000)
    assert 50_000 < weight.nbytes < 150_000
    pattern = module.PATTERN if format_ == "nm" else None
    values = module.random_values(weight.rows, module._COLS, module._ZEROS[format_], pattern)
    assert (values == 0).mean() == pytest.approx(module._ZEROS[format_], abs=0.01)


def test_a_small_measurement_has_every_kernel(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(module, "_caches", lambda: {1: [1 << 12], 2: [1 << 15], 3: [1 << 18]})
    monkeypatch.setattr(module, "_available_memory", lambda: 1 << 22)
    monkeypatch.setattr(module, "_KERNEL_SECONDS", 0.0)
    steps: list[tuple[int, int, str]] = []
    measured = gossamer.roofline(threads=2, progress=lambda *step: steps.append(step))
    assert [rate.kernel for rate in measured.kernels] == KERNELS
    assert [row.threads for row in measured.reads] == [1, 2]
    assert (measured.last_level_bytes, measured.memory_bytes) == (1 << 18, 1 << 20)
    assert [step[0] for step in steps] == list(range(len(KERNELS) + 2))
    assert {step[1] for step in steps} == {len(KERNELS) + 2}
    tiers = _core.isas()
    best = {name.partition("__")[0]: name for name in sorted(KERNELS, key=lambda n: tiers.index(n.partition("__")[2]))}
    assert {rate.kernel for rate in measured.kernels if rate.chosen} == set(best.values())
    for rate in measured.kernels:
        assert rate.positions_per_second > 0
        assert (rate.wins_below is None) or rate.wins_below >= 0
    assert dataclasses.replace(measured, notes=()) == gossamer.roofline(threads=2)
    assert len(files(home)) == 1


def test_unknown_caches_and_little_memory_are_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(module, "_caches", dict)
    monkeypatch.setattr(module, "_LAST_LEVEL", 1 << 20)
    monkeypatch.setattr(module, "_available_memory", lambda: 0)
    monkeypatch.setattr(module, "_KERNEL_SECONDS", 0.0)
    first, second = gossamer.roofline(threads=1).notes
    assert "does not tell the sizes of its caches" in first
    assert "too little free memory" in second
    assert gossamer.roofline(threads=1).notes == ()
    assert len(files(home)) == 1


def test_functions_keep_their_names() -> None:
    assert gossamer.roofline is module.roofline
    importlib.import_module("gossamer.finetune.options")
    assert gossamer.finetune is importlib.import_module("gossamer.finetune.pipeline").finetune
