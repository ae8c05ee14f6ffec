"""What formats reach here: measured once a type, kept for this machine and build, and not believed where garbled."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.formats import FORMATS, expected_shape, measure, stored_bytes
from gossamer.machine import format_rates
from gossamer.machine.format_rates import FormatRate, kept, known, load, measured, remeasured, seconds, settled
from matrices import patterned, sparse


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of its own, and little to measure, however busy the machine is."""
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    monkeypatch.setattr(format_rates, "_SHAPE", (32, 128))
    monkeypatch.setattr(format_rates, "_SHAPE_CACHED", (32, 64))
    monkeypatch.setattr(format_rates, "_SECONDS", 1e-4)
    monkeypatch.setattr(format_rates, "_AGREED", math.inf)
    monkeypatch.setattr(format_rates, "_MOST_SECONDS", math.inf)
    monkeypatch.setattr(format_rates, "_FASTER", 0.0)  # than no time at all
    monkeypatch.setattr(format_rates, "last_level_bytes", lambda: 1 << 16)
    return tmp_path


@pytest.mark.parametrize("type", ["f32", "int8", "int4"])
@pytest.mark.usefixtures("small")
def test_every_format_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch, type: str) -> None:
    assert known(type) is None
    told: list[tuple[int, int, str]] = []
    rates = measured(type, progress=lambda *step: told.append(step))
    assert set(rates) == set(FORMATS)
    assert all(point.seconds > 0 for points in rates.values() for point in points)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)

    def refuse(*_: Any) -> Any:
        raise AssertionError("measured twice")

    monkeypatch.setattr(format_rates, "_measure", refuse)
    assert measured(type) == known(type) == rates


def test_types_lie_beside_one_another(small: Path) -> None:
    first, second = measured("int8"), measured("int4")
    assert known("int8") == first
    assert known("int4") == second
    assert len(list(small.glob("formats/*"))) == 1


def test_models_that_stay_in_the_last_cache_have_rates_of_their_own(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = format_rates._core.time_linears

    def time_linears(stack: Any, **options: Any) -> Any:
        sizes.append(sum(weight.nbytes for weight in stack))
        return real(stack, **options)

    monkeypatch.setattr(format_rates._core, "time_linears", time_linears)
    far, sizes_far = measured("int8"), sizes.copy()
    sizes.clear()
    assert known("int8", cached=True) is None
    near = measured("int8", cached=True)
    assert max(sizes) < 5 * 4096 < (1 << 16) < min(sizes_far)  # a matrix or a few
    assert kept() == {("int8", False): far, ("int8", True): near}
    assert len(list(small.glob("formats/*"))) == 1


@pytest.mark.parametrize(("type", "weights"), [("f32", 1 << 13), ("int8", 1 << 15), ("int4", 1 << 16)])
@pytest.mark.usefixtures("small")
def test_half_of_the_last_cache_holds_a_model(type: str, weights: int) -> None:
    assert format_rates.stays_cached(weights, type)
    assert not format_rates.stays_cached(weights + 8, type)


@pytest.mark.usefixtures("small")
def test_measuring_again_replaces_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = measured("int8"), measured("int4")
    assert kept() == {("int8", False): first, ("int4", False): other}
    slower = {format: tuple(FormatRate(p.load, 3 * p.seconds) for p in points) for format, points in first.items()}
    monkeypatch.setattr(format_rates, "_measure", lambda *_: (slower, True))
    assert remeasured("int8") == known("int8") == slower
    assert kept() == {("int8", False): slower, ("int4", False): other}
    monkeypatch.setattr(format_rates, "_measure", lambda *_: (first, False))  # the machine was busy
    assert remeasured("int8") == first
    assert kept() == {("int8", False): slower, ("int4", False): other}


@pytest.mark.usefixtures("small")
def test_a_machine_that_has_become_faster_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_rates, "_FASTER", 0.9)
    real = format_rates._core.time_linears
    second, csr_slower = 4.0, 1.0

    def time_linears(stack: Any, **options: Any) -> Any:
        passes, y = real(stack, **options)
        passes[:] = second * len(stack) * (csr_slower if stack[0].format == "csr" else 1.0)
        return passes, y

    monkeypatch.setattr(format_rates._core, "time_linears", time_linears)
    slow = measured("int8")
    second = 3.8  # hardly faster
    assert measured("int8") == slow
    second = 5.0
    assert measured("int8") == slow
    second, csr_slower = 2.0, 3.0
    fast = measured("int8")
    assert fast == known("int8")
    for format, points in fast.items():
        share = 1.0 if format == "csr" else 0.5  # the better time counts
        assert [point.seconds for point in points] == pytest.approx([share * p.seconds for p in slow[format]])
        assert [point.load for point in points] == [point.load for point in slow[format]]


@pytest.mark.usefixtures("small")
def test_rates_are_in_the_order_of_their_zeros() -> None:
    for format, points in measured("int8").items():
        assert len(format_rates.zeros(format)) == len(points)
        if format == "bitmap":
            assert [1 - point.load for point in points] == pytest.approx(format_rates.zeros(format), abs=0.05)


def test_rounds_that_were_disturbed_do_not_count() -> None:
    clean = [4.0, 3.0, 2.0]
    rounds = [[factor * time for time in clean] for factor in (1.0, 1.01, 1.7, 2.0, 1.3, 1.02, 2.5, 1.6, 1.9)]
    assert settled(rounds) == pytest.approx([4.04, 3.03, 2.02])
    rounds[0][1] = 9.0  # one case alone
    assert settled(rounds) == pytest.approx([4.04, 3.06, 2.02])
    assert settled([clean]) == clean


@pytest.mark.usefixtures("small")
def test_more_rounds_are_made_while_they_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_rates, "_AGREED", 0.05)
    real = format_rates._core.time_linears
    noisy, calls = True, 0

    def time_linears(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        passes, y = real(*args, **options)
        passes[:] = 1.0 + (calls * calls if noisy else 0.0)
        return passes, y

    monkeypatch.setattr(format_rates._core, "time_linears", time_linears)
    measured("int8")
    assert known("int8") is None
    many, calls, noisy = calls, 0, False
    measured("int4")
    assert known("int4") is not None
    cases = sum(len(format_rates.zeros(format)) for format in ("dense", "bitmap", "csr", "nm"))
    assert calls == cases * (format_rates._ROUNDS + 1)  # and once to know how many passes a turn takes
    assert many == cases * (format_rates._MOST_ROUNDS + 1)
    monkeypatch.setattr(format_rates, "_MOST_SECONDS", 0.0)  # as of a machine on which a round takes long
    calls, noisy = 0, True
    measured("bf16")
    assert known("bf16") is None
    assert calls == cases * (format_rates._BEST + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.pop("csr"),
        lambda row: row.update(dense=[]),
        lambda row: row.update(dense=[[0.0, -1.0]]),
        lambda row: row.update(dense=[["x", 1.0]]),
        lambda row: row.update(bitmap=[[0.5, 1.0], [0.5, 2.0]]),
        lambda row: row.update(nm=7),
    ],
)
def test_garbled_files_are_measured_again(small: Path, change: Any) -> None:
    measured("int8")
    (path,) = small.glob("formats/*")
    document = json.loads(path.read_text())
    change(document["rates"]["int8"])
    path.write_text(json.dumps(document))
    assert known("int8") is None
    measured("int8")
    assert known("int8") is not None


@pytest.mark.usefixtures("small")
def test_figures_of_another_build_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    measured("int8")
    monkeypatch.setattr(format_rates, "machine_key", lambda: {"processor": "another"})
    assert known("int8") is None


def test_time_changes_evenly_with_the_load_and_beyond_what_was_measured() -> None:
    rates = {"bitmap": (FormatRate(0.2, 1.0), FormatRate(0.4, 1.5), FormatRate(0.8, 3.5))}
    times = {}
    for zeros in (0.9, 0.7, 0.5, 0.0):
        shape = measure(sparse(64, 256, zeros))
        times[zeros] = seconds(rates, shape, "bitmap") / shape.positions
        at = load(shape, "bitmap")
        low, high = ((0.2, 1.0), (0.4, 1.5)) if at <= 0.4 else ((0.4, 1.5), (0.8, 3.5))
        assert times[zeros] == pytest.approx(low[1] + (at - low[0]) * (high[1] - low[1]) / (high[0] - low[0]))
    assert times[0.0] > 4.0
    assert seconds({"bitmap": (FormatRate(0.4, 1.0), FormatRate(0.5, 5.0))}, expected_shape(16, 64, 1), "bitmap") > 0


@pytest.mark.parametrize("zeros", [0.3, 0.5, 0.8, 0.95])
def test_expected_shapes_are_near_those_of_even_zeros(zeros: float) -> None:
    values = sparse(256, 512, zeros)
    real, expected = measure(values), expected_shape(256, 512, int(np.count_nonzero(values)))
    assert expected.nonzeros == real.nonzeros
    assert expected.steps == pytest.approx(real.steps, rel=0.03)
    for format in ("dense", "bitmap", "csr"):
        assert stored_bytes(expected, format, "int8") == pytest.approx(stored_bytes(real, format, "int8"), rel=0.03)


def test_expected_shapes_know_a_pattern_and_take_any_size() -> None:
    assert expected_shape(64, 64, 2048, (2, 4)).patterns == {4: 2}
    assert measure(patterned(64, 64, 2, 4)).patterns[4] == 2
    for rows, cols in ((1, 1), (17, 65), (16, 64)):
        for nonzeros in (0, 1, rows * cols):
            shape = expected_shape(rows, cols, nonzeros)
            assert shape.positions == measure(np.ones((rows, cols), np.float32)).positions
            assert stored_bytes(shape, "csr", "int4") > 0
