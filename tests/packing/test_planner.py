"""The planner: which format pays, by zeros, bytes, and what a core does with them."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer import _core
from gossamer.formats import FORMATS, TYPES, measure, stored_bytes
from gossamer.machine import format_rates
from gossamer.machine.format_rates import FormatRate
from gossamer.machine.roofline import KernelRate, Reads, Roofline
from gossamer.packing.planner import USUAL, Machine, choose, here, seconds, this_machine, usual_machine
from matrices import patterned, sparse

CASES: list[tuple[NDArray[np.float32], str, str]] = [
    (sparse(256, 256, 0.0), "int8", "dense"),
    (sparse(256, 256, 0.3), "int8", "dense"),
    (sparse(256, 256, 0.4), "int8", "bitmap"),
    (sparse(256, 256, 0.5), "int4", "bitmap"),
    (sparse(256, 256, 0.7), "f32", "bitmap"),
    (sparse(256, 256, 0.99), "f32", "csr"),
    (sparse(256, 256, 0.99), "int8", "csr"),
    (sparse(256, 256, 0.75), "int8", "bitmap"),
    (sparse(256, 256, 0.91), "int8", "csr"),  # larger than bitmap, but the quicker to work on
    (sparse(256, 256, 1.0), "bf16", "csr"),
    (patterned(256, 256, 2, 4), "int8", "nm"),
    (patterned(256, 256, 16, 32), "int4", "nm"),
    (patterned(256, 256, 2, 4) * (sparse(256, 256, 0.02) > 0), "int8", "nm"),  # a few kept ones rounded to zero
    (patterned(256, 256, 2, 4) * (sparse(256, 256, 0.2) > 0), "int8", "bitmap"),  # many
    (patterned(256, 256, 3, 4), "int8", "dense"),  # 25% zeros
    (patterned(256, 256, 48, 64) * (sparse(256, 256, 0.5) > 0), "int8", "bitmap"),  # a pattern that wastes most
]


@pytest.mark.parametrize(("values", "kind", "expected"), CASES)
def test_choices(values: NDArray[np.float32], kind: str, expected: str) -> None:
    shape = measure(values)
    choice = choose(shape, kind, machine=usual_machine("avx512_vbmi2"))
    assert choice.format == expected
    assert f"{100 * shape.zeros:.1f}% zeros" in choice.reason
    assert (choice.pattern is not None) == (expected == "nm")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "cols"), [(17, 65), (1, 64), (16, 5), (128, 192)])
def test_a_choice_is_never_larger_than_dense(kind: str, rows: int, cols: int) -> None:
    for zeros, isa in itertools.product((0.0, 0.36, 0.5, 0.8, 0.9, 0.97, 1.0), USUAL):
        shape = measure(sparse(rows, cols, zeros))
        choice = choose(shape, kind, machine=usual_machine(isa))
        assert stored_bytes(shape, choice.format, kind, choice.pattern) <= stored_bytes(shape, "dense", kind)


def test_what_pays_depends_on_the_machine() -> None:
    half = measure(sparse(256, 256, 0.5))
    most = measure(sparse(256, 256, 0.75))
    assert choose(half, "int8", machine=usual_machine("avx512_vbmi2")).format == "bitmap"
    slow = usual_machine("avx2")  # the more it reads, the more it matters how long a bitmap takes to expand
    assert choose(half, "int8", machine=replace(slow, bandwidth=10.0)).format == "bitmap"
    assert choose(half, "int8", machine=replace(slow, bandwidth=40.0)).format == "dense"
    assert "nothing is faster here" in choose(half, "int8", machine=replace(slow, bandwidth=40.0)).reason
    assert choose(most, "int8", machine=slow).format == "csr"


def test_time_is_that_of_the_slower_of_reading_and_working_and_some_of_the_other() -> None:
    shape = measure(sparse(64, 128, 0.5))
    machine = Machine(10.0, {("bitmap", "int8"): 4.0})
    read, work = stored_bytes(shape, "bitmap", "int8") / 10.0, 64 * 128 / 4.0
    assert work > read
    assert seconds(machine, shape, "bitmap", "int8") == pytest.approx(1e-9 * (work + 0.25 * read))
    fast = Machine(1.0, {("bitmap", "int8"): 4.0})
    assert seconds(fast, shape, "bitmap", "int8") == pytest.approx(1e-9 * (10 * read + 0.25 * work))


def test_csr_costs_its_steps() -> None:
    machine = Machine(1e9, {("csr", "int8"): 100.0})
    times = [seconds(machine, measure(sparse(256, 512, zeros)), "csr", "int8") for zeros in (0.75, 0.9, 0.95)]
    assert times[0] > 1.5 * times[1] > 2 * times[2]
    assert times[2] == pytest.approx(256 * 512 / 100e9, rel=0.05)  # that is where rates are taken


@pytest.mark.parametrize("isa", _core.isas())
def test_every_tier_has_a_usual_machine(isa: str) -> None:
    rates = usual_machine(isa).rates
    assert rates.keys() == set(itertools.product(FORMATS, TYPES))


def test_measured_figures_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    assert not this_machine().measured
    kernels = [KernelRate(name, True, 0.5, 1.0, 7.0) for name in _core.kernels()]
    figures = Roofline({}, "", 1, 1, (Reads(1, 9.0, 20.0), Reads(4, 24.0, 80.0)), tuple(kernels))
    monkeypatch.setattr(importlib.import_module("gossamer.machine.roofline"), "cached", lambda: figures)
    machine = this_machine()
    assert machine.measured
    assert machine.bandwidth == 6.0
    assert machine.rates == dict.fromkeys(itertools.product(FORMATS, TYPES), 7.0)


def test_what_was_measured_from_memory_is_believed_first() -> None:
    rates = {
        "dense": (FormatRate(0.0, 1.0),),
        "bitmap": (FormatRate(0.25, 0.6), FormatRate(0.5, 1.1)),
        "csr": (FormatRate(1.0, 0.5), FormatRate(5.0, 3.0)),
        "nm": (FormatRate(0.0, 0.9),),
    }
    machine = replace(usual_machine("avx512_vbmi2"), formats={"int8": rates}, cores=2)
    half, most = measure(sparse(256, 256, 0.5)), measure(sparse(256, 256, 0.75))
    assert seconds(machine, half, "dense", "int8") == pytest.approx(2e-9 * 256 * 256)
    assert seconds(machine, half, "bitmap", "int8") == pytest.approx(2e-9 * 256 * 256 * 1.1, rel=0.02)
    assert choose(half, "int8", machine=machine).format == "dense"  # a usual one takes bitmap
    chosen = choose(most, "int8", machine=machine)
    assert chosen.format == "bitmap"
    assert "as measured here" in chosen.reason
    assert choose(half, "int4", machine=machine).reason.count("by estimate") == 1


def test_a_model_is_planned_for_where_its_weights_will_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one stays in the last-level cache, where dense weights are read faster than zeros are expanded."""

    def measured(_type: str, cached: bool, _progress: object) -> dict[str, tuple[FormatRate, ...]]:
        times = {"dense": 0.5 if cached else 2.0, "bitmap": 1.0, "csr": 9.0, "nm": 9.0}
        return {format: (FormatRate(0.0, seconds),) for format, seconds in times.items()}

    monkeypatch.setenv("GOSSAMER_MEASURE", "1")
    monkeypatch.setattr(format_rates, "measured", measured)
    monkeypatch.setattr(format_rates, "last_level_bytes", lambda: 2_000_000)
    half = measure(sparse(256, 256, 0.5))
    dense = [choose(half, "int8", machine=here(None, size)).format == "dense" for size in (1_000_000, 1_000_001, None)]
    assert dense == [True, False, False]


@pytest.mark.parametrize(("zeros", "expected"), [(0.15, "dense"), (0.3, "bitmap")])
def test_few_zeros_are_taken_where_it_is_measured_that_they_pay(zeros: float, expected: str) -> None:
    rates = {
        "dense": (FormatRate(0.0, 1.0),),
        "bitmap": (FormatRate(0.5, 0.6), FormatRate(1.0, 1.0)),
        "csr": (FormatRate(1.0, 0.5), FormatRate(5.0, 3.0)),
        "nm": (FormatRate(0.0, 0.9),),
    }
    few = measure(sparse(256, 256, zeros))
    assert choose(few, "int8", machine=usual_machine("avx512_vbmi2")).format == "dense"
    assert (
        choose(few, "int8", machine=replace(usual_machine("avx512_vbmi2"), formats={"int8": rates})).format == expected
    )


def test_machines_are_looked_up_once_a_type_and_measured_only_where_sparse_could_pay() -> None:
    asked: list[str | None] = []

    def look(type: str | None) -> Machine:
        asked.append(type)
        return usual_machine("avx2")

    choose(measure(sparse(64, 64, 0.1)), "int8", machine=look)
    choose(measure(sparse(64, 64, 0.6)), "int8", machine=look)
    choose(measure(sparse(64, 64, 0.6)), "int8", "bitmap", look)
    assert asked == [None, "int8"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_was_asked_for_is_taken(name: str) -> None:
    choice = choose(measure(patterned(32, 64, 2, 4)), "int8", name)
    assert (choice.format, choice.pattern) == (name, (2, 4) if name == "nm" else None)
    assert "asked for" in choice.reason


def test_nm_without_a_pattern_becomes_bitmap_and_says_so() -> None:
    values = sparse(32, 64, 0.1)
    values[3] = 1.0  # a full row
    choice = choose(measure(values), "int8", "nm")
    assert choice.format == "bitmap"
    assert "no N:M pattern holds" in choice.reason
