"""Timing primitives: they run what they say they run. How long it takes is nothing that a test can know."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

import reference
from checkout import ROOT
from gossamer import _core


def weight(rows: int = 48, cols: int = 130, format: str = "bitmap", type: str = "int8", seed: int = 0) -> _core.Weight:
    return _core.pack(reference.random_matrix(rows, cols, 0.5, seed), format, type)


def inputs(batch: int, cols: int = 130) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, cols)).astype(np.float32)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("size", [1, 4096, (1 << 20) + 7])
def test_every_read_has_a_time(size: int, prefetch: bool) -> None:
    seconds = _core.read_bandwidth(size, threads=2, prefetch=prefetch, repeats=3)
    assert seconds.shape == (3,)
    assert (seconds > 0).all()


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("activations", ["auto", "f32"])
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_are_those_of_linear(batch: int, activations: str, threads: int) -> None:
    weights = [weight(33, seed=1), weight(64, seed=2), weight(17, seed=3)]
    x = inputs(batch)
    seconds, y = _core.time_linears(weights, x, activations, threads, repeats=2)
    assert seconds.shape == (2,)
    assert (seconds > 0).all()
    np.testing.assert_array_equal(y, _core.linear(weights[-1], x, activations))


def test_weights_of_a_group_run_on_the_same_inputs() -> None:
    group = [weight(64), weight(16, seed=4), weight(33, format="dense", type="bf16")]
    x = inputs(2)
    for last in group:
        order = [one for one in group if one is not last] + [last]
        _, y = _core.time_linears([weight(20), order], x)
        np.testing.assert_array_equal(y, _core.linear(last, x))


def test_a_batch_size_draws_inputs_for_any_columns() -> None:
    weights = [weight(16, 64), [weight(32, 200), weight(8, 200)], weight(24, 64)]
    _, y = _core.time_linears(weights, 3)
    _, again = _core.time_linears(weights[-1:], 3)
    assert y.shape == (3, 24)
    assert np.abs(y).max() > 0
    np.testing.assert_array_equal(y, again)  # the same for every call


@pytest.mark.parametrize("name", _core.kernels())
def test_a_named_kernel_is_the_one_that_runs(name: str) -> None:
    format, _, type, _ = name.split("__", maxsplit=1)[0].split("_")
    values = reference.random_matrix(200, 130, 0.5)
    pattern = (2, 4) if format == "nm" else None
    packed = _core.pack(reference.prune_nm(values, 2, 4) if pattern else values, format, type, 64, pattern)
    for batch, threads in ((1, 1), (1, 3), (3, 1), (3, 3)):
        x = inputs(batch)
        _, y = _core.time_linears([packed], x, threads=threads, kernel=name)
        np.testing.assert_array_equal(y, _core.run_kernel(name, packed, x)[:, :200])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: _core.read_bandwidth(0), "size must be between 1 and"),
        (lambda: _core.read_bandwidth(-5), "size must be between 1 and"),
        (lambda: _core.read_bandwidth(64, repeats=0), "repeats must be at least 1, got 0"),
        (lambda: _core.read_bandwidth(64, threads=-1), "threads must be between 0 and 1024, got -1"),
        (lambda: _core.time_linears([], 1), "the list is empty"),
        (lambda: _core.time_linears([[]], 1), "group 0 of the weights is empty"),
        (lambda: _core.time_linears([weight(), 3], 1), "weights must be Weight objects"),  # type: ignore[list-item]
        (lambda: _core.time_linears([weight(), "ab"], 1), "weights must be Weight objects"),  # type: ignore[list-item]
        (lambda: _core.time_linears([weight()], 0), "batch must be at least 1, got 0"),
        (lambda: _core.time_linears([weight()], inputs(0)), "batch must be at least 1, got 0"),
        (lambda: _core.time_linears([weight()], inputs(1)[0]), "x must be a matrix .* or a batch size"),
        (lambda: _core.time_linears([weight()], [["a"]]), "x must hold real numbers"),
        (lambda: _core.time_linears([weight()], inputs(1, 131)), "x must have 130 columns, got 131"),
        (lambda: _core.time_linears([weight(), weight(8, 64)], inputs(1)), "x must have 64 columns, got 130"),
        (lambda: _core.time_linears([[weight(), weight(8, 64)]], 1), "equal columns, got 130 and 64"),
        (lambda: _core.time_linears([weight()], 1, repeats=0), "repeats must be at least 1, got 0"),
        (lambda: _core.time_linears([weight()], 1, threads=-1), "threads must be between 0 and 1024, got -1"),
        (lambda: _core.time_linears([weight()], 1, "a16"), "activations must be f32, bf16 or a8, got 'a16'"),
        (lambda: _core.time_linears([weight()], 1, kernel="nosuch"), "no kernel 'nosuch' can run here"),
        (
            lambda: _core.time_linears([weight()], 1, kernel="dense_linear_f32_f32__scalar"),
            "does not take bitmap weights of type int8",
        ),
    ],
)
def test_wrong_requests_are_told(call: Callable[[], object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call()


def test_other_threads_run_meanwhile_and_ctrl_c_ends_a_long_run() -> None:
    ticks = 0

    def interrupt() -> None:
        nonlocal ticks
        for _ in range(3):
            ticks += 1
            done.wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    done = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        _core.time_linears([weight(512, 1024)], 1, repeats=100_000_000)
    thread.join()
    assert ticks == 3


def test_the_compiler_is_known() -> None:
    assert any(character.isdigit() for character in _core.compiler())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("kernels")


@pytest.mark.parametrize(("format", "zeros"), [("dense", 0.0), ("bitmap", 0.75), ("csr", 0.9), ("nm", 0.5)])
@pytest.mark.parametrize("type", reference.TYPES)
def test_bench_weights_have_the_zeros_asked_for(bench: ModuleType, format: str, type: str, zeros: float) -> None:
    one = bench.random_weight(256, 512, format, type, zeros, (4, 8) if format == "nm" else None)
    assert 1 - one.nnz / (256 * 512) == pytest.approx(zeros, abs=0.01)
    several = bench.copies(one, 5 * one.nbytes - 1)
    assert len(several) == 5
    places = {copy.streams()["values"].ctypes.data for copy in several}
    assert len(places) == 5
    assert all(place % 64 == 0 for place in places)
    for copy in several:
        np.testing.assert_array_equal(copy.unpack(), one.unpack())


@pytest.mark.parametrize("name", [name for name in _core.kernels() if name.startswith("bitmap_")])
def test_the_bench_checks_what_it_times(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    type, activations = name.partition("__")[0].split("_")[2:]
    one = bench.random_weight(64, 256, "bitmap", type, 0.5)
    assert 0 < bench.check(one, activations, 3, 1, name) <= 1
    right = bench.seen_by_kernels
    monkeypatch.setattr(bench, "seen_by_kernels", lambda x, activations: right(x, activations) * (1 + 2**-10))
    with pytest.raises(SystemExit, match="times the bound"):
        bench.check(one, activations, 3, 1, name)


@pytest.mark.parametrize("beyond", [False, True])
def test_a_bench_row_says_what_was_read(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, beyond: bool) -> None:
    monkeypatch.setattr(bench, "BEYOND", 1 << 16)
    one = bench.random_weight(64, 256, "bitmap", "int8", 0.5)
    timer = bench.Timer(bench.copies(one, bench.BEYOND) if beyond else [one], batch=2, threads=1)
    timer.round()
    row = timer.result()
    assert row["bytes"] == one.nbytes
    assert row["weights"] == (-(-(1 << 16) // one.nbytes) if beyond else 1)
    assert row["bandwidth"] == pytest.approx(one.nbytes / row["seconds"] / 1e9)
    assert row["positions_per_second"] == pytest.approx(2 * 64 * 256 / row["seconds"] / 1e9)
    assert row["fastest"] <= row["seconds"] <= row["slowest"]
    if beyond:
        assert row["share"] == pytest.approx(row["bandwidth"] / max(row["plain_reads"], row["prefetched_reads"]))
    else:
        assert "share" not in row


def test_bench_shapes_are_those_of_the_models(bench: ModuleType) -> None:
    found = bench.shapes(["smollm2-135m", "llama-2-7b"])
    assert found == {
        (576, 576): ["smollm2-135m"],
        (192, 576): ["smollm2-135m"],
        (1536, 576): ["smollm2-135m"],
        (576, 1536): ["smollm2-135m"],
        (4096, 4096): ["llama-2-7b"],
        (11008, 4096): ["llama-2-7b"],
        (4096, 11008): ["llama-2-7b"],
    }
