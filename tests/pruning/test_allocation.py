"""How zeros are divided among matrices: the arithmetic of the budget, and what is measured for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossamer.arch.llama import Sizes
from gossamer.errors import GossamerError
from gossamer.pruning import Target
from gossamer.pruning.allocation import Size, by_divergence, by_outliers
from gossamer.pruning.masks import keep_even_rows
from gossamer.pruning.sensitivity import Probe
from gossamer.pruning.walk import chunked
from reference_model import ReferenceModel, random_tensors

ENTRIES = {"a": 1000, "b": 331776, "c": 7, "d": 884736, "e": 1, "f": 110592}
SIZES = {name: Size(entries, 0) for name, entries in ENTRIES.items()}


def total(targets: dict[str, Target], sizes: dict[str, Size]) -> int:
    return sum(targets[name].zeros(size.entries) for name, size in sizes.items())


@pytest.mark.parametrize("allocate", [by_outliers, by_divergence])
@pytest.mark.parametrize("sparsity", [0.0, 1e-6, 0.1, 0.5, 0.613, 0.97, 0.999])
@pytest.mark.parametrize("seed", range(4))
def test_zeros_add_up_to_the_budget_exactly(allocate: Any, sparsity: float, seed: int) -> None:
    measured = dict(zip(SIZES, np.random.default_rng(seed).lognormal(0, 3, len(SIZES)), strict=True))
    targets = allocate(Target(sparsity), SIZES, measured)
    assert targets.keys() == SIZES.keys()
    assert total(targets, SIZES) == round(sparsity * sum(size.entries for size in SIZES.values()))
    for name, target in targets.items():
        assert 0 <= target.sparsity <= 1
        if SIZES[name].entries > 100:
            assert target.sparsity < 1
            assert abs(target.sparsity - sparsity) < 0.26


@pytest.mark.parametrize("allocate", [by_outliers, by_divergence])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_matrices_are_treated_alike(allocate: Any, value: float) -> None:
    sizes = {name: Size(1001, 0) for name in "abc"}
    targets = allocate(Target(0.5), sizes, dict.fromkeys(sizes, value))
    counts = [target.zeros(1001) for target in targets.values()]
    assert sum(counts) == round(0.5 * 3003)
    assert max(counts) - min(counts) <= 2


def test_outliers_move_sparsities_over_the_span_of_the_paper() -> None:
    sizes = {name: Size(10**6, 0) for name in "abc"}
    targets = by_outliers(Target(0.5), sizes, {"a": 0.01, "b": 0.02, "c": 0.03})
    np.testing.assert_allclose([targets[name].sparsity for name in "abc"], [0.58, 0.5, 0.42], atol=1e-5)


def test_divergence_gives_the_cheapest_way_to_meet_the_budget() -> None:
    sizes = {"a": Size(400000, 0), "b": Size(100000, 0), "c": Size(250000, 0)}
    divergence = {"a": 0.03, "b": 0.02, "c": 0.01}

    def cost(zeros: dict[str, float]) -> float:
        return sum(divergence[name] * (zeros[name] / sizes[name].entries / 0.4) ** 5 for name in sizes)

    targets = by_divergence(Target(0.4), sizes, divergence)
    best = {name: float(targets[name].zeros(size.entries)) for name, size in sizes.items()}
    for more in sizes:
        for less in sizes.keys() - {more}:
            assert cost(best) <= cost(best | {more: best[more] + 100, less: best[less] - 100})


def test_zeros_that_are_there_count_and_stay() -> None:
    sizes = {"a": Size(1000, 900), "b": Size(1000, 0), "c": Size(1000, 0)}
    targets = by_divergence(Target(0.5), sizes, {"a": 9.0, "b": 1.0, "c": 1.0})
    assert [targets[name].zeros(1000) for name in "abc"] == [900, 300, 300]
    targets = by_divergence(Target(0.1), sizes, {"a": 9.0, "b": 1.0, "c": 1.0})  # more than asked for already
    assert [targets[name].zeros(1000) for name in "abc"] == [900, 0, 0]


@pytest.mark.parametrize("zeros", [0, 1, 4, 5, 7, 12, 20])
def test_rows_share_zeros_evenly(zeros: int) -> None:
    scores = np.random.default_rng(1).random((4, 5))
    keep = keep_even_rows(scores, zeros)
    each = (~keep).sum(axis=1)
    assert each.sum() == zeros
    assert np.ptp(each) <= 1
    for row, kept in zip(scores, keep, strict=True):
        assert row[~kept].max(initial=-1) < row[kept].min(initial=2)
    if zeros % 4:  # the rows with one more are those that lose least by it
        next_lowest = np.sort(scores, axis=1)[:, zeros // 4]
        assert next_lowest[each > zeros // 4].max() < next_lowest[each == zeros // 4].min()


CONFIG = Sizes(
    hidden=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate=56,
    vocab=64,
    context=64,
    norm_eps=1e-5,
    inv_freq=tuple(10000.0 ** (-j / 4) for j in range(4)),
    tied=True,
).describe()

PARTS = (("q", "k", "v", "o"), ("gate", "up"), ("down",))
LINEARS = sum(PARTS, ())


@pytest.fixture
def probed() -> tuple[ReferenceModel, dict[str, Any], Any, Probe]:
    tensors = random_tensors(CONFIG)
    model = ReferenceModel(CONFIG, tensors)
    windows = np.random.default_rng(5).integers(0, CONFIG.vocab, (5, 24)).astype(np.int32)
    return model, tensors, windows, Probe(model, CONFIG, chunked(windows), lambda name: tensors[name])


def inputs_of(model: ReferenceModel, windows: Any) -> dict[str, Any]:
    """Inputs of every matrix over two of the windows, by name."""
    hidden, inputs = model.embed(windows[[0, 3]].reshape(-1)), {}
    for layer in range(CONFIG.layers):
        hidden, captured = model.forward_block(
            layer, hidden, [name for group in CONFIG.blocks[layer].groups for name in group.linears], windows.shape[1]
        )
        inputs.update({f"layers.{layer}.{linear}": x for linear, x in captured.items()})
    return inputs


def test_outliers_are_counted_in_a_whole_block(probed: Any) -> None:
    model, tensors, windows, probe = probed
    steps: list[int] = []
    measured = probe.outliers(lambda done, *_: steps.append(done))
    assert steps == [0, 1, 2]
    inputs = inputs_of(model, windows)
    for layer in range(CONFIG.layers):
        names = [name for name in inputs if name.startswith(f"layers.{layer}.")]
        scores = np.concatenate(
            [(np.abs(tensors[name]) * np.linalg.norm(inputs[name], axis=0)).ravel() for name in names]
        )
        share = (scores > 5 * scores.mean()).mean()
        assert 0 < share < 0.1
        assert {measured[name] for name in names} == {share}


def test_divergence_is_what_predictions_lose_and_leaves_the_model_as_it_was(probed: Any) -> None:
    model, tensors, windows, probe = probed
    before = {name: value.copy() for name, value in model.tensors.items()}
    steps: list[int] = []
    measured = probe.divergence(Target(0.5), model.set_weight, lambda done, *_: steps.append(done))
    assert steps == list(range(2 * len(PARTS) + 1))
    for name, value in before.items():
        np.testing.assert_array_equal(model.tensors[name], value)

    inputs = inputs_of(model, windows)
    assert measured.keys() == inputs.keys()

    def predictions() -> Any:
        logits = np.concatenate([model.logits(window) for window in windows[[0, 3]]])
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    dense = predictions()
    for layer in range(CONFIG.layers):
        for part in PARTS:
            names = [f"layers.{layer}.{linear}" for linear in part]
            for name in names:
                scores = np.abs(tensors[name]) * np.linalg.norm(inputs[name], axis=0)
                keep = scores > np.sort(scores, axis=1)[:, [scores.shape[1] // 2 - 1]]
                model.set_weight(name, tensors[name] * keep)
            expected = (np.exp(dense) * (dense - predictions())).sum(axis=1).mean()
            assert sum(measured[name] for name in names) == pytest.approx(expected, rel=1e-4)
            for name in names:
                model.set_weight(name, tensors[name])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("layers.1.v", r"layers\.1\.o: the inputs measured in calibration are not finite"),
        ("norm", r"layers\.0: predictions are not finite with q, k, v, o changed"),
    ],
)
def test_what_is_not_finite_names_its_layer(tensor: str, message: str) -> None:
    tensors = random_tensors(CONFIG)
    tensors[tensor].flat[3] = np.nan
    model = ReferenceModel(CONFIG, tensors)

    def measure() -> None:
        probe = Probe(model, CONFIG, chunked(np.zeros((2, 8), dtype=np.int32)), lambda name: tensors[name])
        probe.divergence(Target(0.5), model.set_weight, lambda *_: None)

    with pytest.raises(GossamerError, match=message):
        measure()


def test_interrupted_measuring_leaves_the_model_as_it_was(probed: Any) -> None:
    model, tensors, _, probe = probed
    forward, calls = model.forward_block, []

    def stop(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*arguments)

    model.forward_block = stop
    with pytest.raises(KeyboardInterrupt):
        probe.divergence(Target(0.5), model.set_weight, lambda *_: None)
    for name, value in tensors.items():
        np.testing.assert_array_equal(model.tensors[name], value)
