"""Pruning: the methods on small matrices, the walk on a small model, whole checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer import _core
from gossamer.arch.llama import Sizes
from gossamer.errors import GossamerError
from gossamer.formats import STORED
from gossamer.pruning import Target, magnitude, sparsegpt, wanda
from gossamer.pruning.int4 import Int4
from gossamer.pruning.linalg import damped, inverse, inverse_factor
from gossamer.pruning.masks import Form, keep_pattern
from gossamer.pruning.methods import CALIBRATED, METHODS
from gossamer.pruning.methods.method import Method
from gossamer.pruning.sequential import prune_blocks
from gossamer.pruning.walk import chunked
from problems import error, problem
from reference_model import ReferenceModel, random_tensors

PATTERNS = [(2, 4), (1, 4), (4, 8), (3, 5), (16, 32), (1, 1), (4, 4)]


def apply(method: str, weight: Any, gram: Any, target: Target) -> NDArray[np.float32]:
    if method == "magnitude":
        return magnitude(weight, target)
    return CALIBRATED[method].solve(weight, gram, target, weight != 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 128), (7, 129), (33, 300), (64, 40)])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.5, 0.97])
def test_unstructured_zeros_are_exactly_as_many_as_asked(method: str, shape: tuple[int, int], sparsity: float) -> None:
    weight, x, gram = problem(*shape)
    pruned = apply(method, weight, gram, Target(sparsity))
    assert pruned.shape == weight.shape
    assert pruned.dtype == np.float32
    assert np.isfinite(pruned).all()
    zeros = pruned == 0
    assert zeros.sum() == round(sparsity * weight.size)
    if method == "wanda":
        assert np.ptp(zeros.sum(axis=1)) <= 1
    if sparsity == 0 and method != "admm":
        np.testing.assert_array_equal(pruned, weight)
    elif sparsity == 0:  # it takes its float32 steps even where there is nothing to do
        assert error(weight, pruned, x) < np.finfo(np.float32).eps
    assert not np.signbit(pruned[zeros]).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("cols", [1, 3, 64, 130, 261])
def test_patterns_hold_in_every_group_and_in_the_tail(method: str, pattern: tuple[int, int], cols: int) -> None:
    weight, _, gram = problem(6, cols)
    pruned = apply(method, weight, gram, Target.parse(None, pattern))
    n, m = pattern
    for start in range(0, cols, m):
        group = pruned[:, start : start + m]
        assert ((group != 0).sum(axis=1) == min(n, group.shape[1])).all()


def test_wanda_weighs_entries_by_their_inputs() -> None:
    weight = np.array([[1.0, -2.0, 3.0, -4.0], [8.0, 7.0, -6.0, 5.0]], dtype=np.float32)
    gram = np.diag([100.0, 1.0, 1.0, 0.01])
    np.testing.assert_array_equal(wanda(weight, gram, Target(0.5)), [[1, 0, 3, 0], [8, 7, 0, 0]])
    np.testing.assert_array_equal(wanda(weight, gram, Target.parse(None, (1, 2))), [[1, 0, 3, 0], [8, 0, -6, 0]])


def slow_obs(weight: Any, gram: Any, target: Target) -> NDArray[np.float64]:
    """SparseGPT as its paper states it: one inverse per column, one row at a time, float64."""
    damped = gram + np.eye(len(gram)) * (0.01 * np.trace(gram) / len(gram))
    rows, cols = weight.shape
    left = weight.astype(np.float64)
    inverses = [np.linalg.inv(damped[j:, j:]) for j in range(cols)]
    keep = np.ones((rows, cols), dtype=bool)
    for j in range(cols):
        if target.pattern and j % target.pattern[1] == 0:
            stop = min(j + target.pattern[1], cols)
        elif not target.pattern and j % 128 == 0:
            stop = min(j + 128, cols)
        else:
            stop = 0
        if stop:
            scores = np.stack([left[:, i] ** 2 / inverses[i][0, 0] for i in range(j, stop)], axis=1)
            if target.pattern:
                keep[:, j:stop] = keep_pattern(scores, target.pattern)
            else:
                zeros = round(target.sparsity * rows * stop) - int((~keep).sum())
                keep[:, j:stop] = scores > np.sort(scores, axis=None)[zeros - 1]
        for row in range(rows):
            if not keep[row, j]:
                left[row, j:] -= left[row, j] / inverses[j][0, 0] * inverses[j][0]
                left[row, j] = 0
    return left


@pytest.mark.parametrize("target", [Target(0.5), Target(0.8), Target.parse(None, (2, 4)), Target.parse(None, (3, 7))])
@pytest.mark.parametrize("cols", [9, 128, 171])
def test_sparsegpt_equals_the_slow_obvious_form(target: Target, cols: int) -> None:
    weight, _, gram = problem(5, cols, seed=1)
    expected = slow_obs(weight, gram, target)
    actual = sparsegpt(weight, gram, target)
    np.testing.assert_array_equal(actual == 0, expected == 0)
    # float32 steps, as many as columns, each within a rounding of values of the size of the largest.
    bound = cols * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [Target(0), Target(0.3), Target(0.6), Target.parse(None, (3, 4))])
def test_what_is_zero_stays_zero_and_counts(method: str, target: Target) -> None:
    weight, _, gram = problem(24, 160, seed=8)
    weight[np.random.default_rng(8).random(weight.shape) < 0.4] = 0
    pruned = apply(method, weight, gram, target)
    assert (pruned[weight == 0] == 0).all()
    if target == Target(0.6):
        assert abs((pruned == 0).mean() - 0.6) < 0.02
    elif not target.pattern:  # fewer than there are
        np.testing.assert_array_equal(pruned == 0, weight == 0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_left_to_prune(method: str) -> None:
    weight = np.zeros((3, 20), np.float32)
    assert not apply(method, weight, np.eye(20), Target(0.5)).any()


def test_magnitude_is_relative_to_row_and_column() -> None:
    weight = np.array([[4, 3, 0.2], [0.3, 0.01, 0.1], [0, 0, 0]], np.float32)
    shares = np.abs(weight[:2]) / weight.sum(1, keepdims=True)[:2] + np.abs(weight[:2]) / weight.sum(0)
    expected = np.where(shares >= np.sort(shares, axis=None)[3], weight[:2], 0)
    np.testing.assert_array_equal(magnitude(weight, Target(6 / 9))[:2], expected)


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("target", [Target(0), Target(0.5), Target.parse(None, (2, 4)), Target.parse(None, (5, 24))])
def test_int4_in_the_sweep_is_stored_exactly_and_loses_less_than_afterwards(target: Target, group: int) -> None:
    weight, x, gram = problem(48, 300, seed=9)
    pruned = sparsegpt(weight, gram, target, None, Int4(group))
    np.testing.assert_array_equal(_core.pack(pruned, "dense", "int4", group).unpack(), pruned)
    if target.pattern:
        n, m = target.pattern
        counts = np.add.reduceat(pruned != 0, range(0, 300, m), axis=1)
        assert counts.max() <= n
    else:
        assert (pruned == 0).sum() >= round(target.sparsity * weight.size)
    after = _core.pack(sparsegpt(weight, gram, target), "dense", "int4", group).unpack()
    assert error(weight, pruned, x) < error(weight, after, x)


def test_int4_rounds_a_pruned_matrix_without_new_entries() -> None:
    weight, x, gram = problem(48, 300, seed=10)
    pruned = sparsegpt(weight, gram, Target(0.5))
    rounded = sparsegpt(pruned, gram, Target(0), pruned != 0, Int4(64))
    assert (rounded[pruned == 0] == 0).all()
    after = _core.pack(pruned, "dense", "int4", 64).unpack()
    assert error(pruned, rounded, x) < 0.6 * error(pruned, after, x)


@pytest.mark.parametrize("target", [Target(0.5), Target(0.7), Target.parse(None, (2, 4))])
def test_each_method_beats_the_one_before_on_correlated_inputs(target: Target) -> None:
    weight, x, gram = problem(48, 192, seed=2)
    errors = [error(weight, apply(method, weight, gram, target), x) for method in METHODS]
    assert METHODS == ("magnitude", "wanda", "sparsegpt", "admm")
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > 1.5 * errors[2]
    assert errors[2] > 1.2 * errors[3]


@pytest.mark.parametrize("size", [1, 60, 65, 259])
def test_inverse_factor_is_upper_and_inverts(size: int) -> None:
    _, _, gram = problem(1, size)
    factor = inverse_factor(gram).astype(np.float64)
    assert not np.tril(factor, -1).any()
    moments = gram + 0.01 * np.diagonal(gram).mean() * np.eye(size)
    product = factor.T @ factor @ moments
    np.testing.assert_allclose(product / product[0, 0], np.eye(size), atol=1e-4)


@pytest.mark.parametrize("size", [1, 60, 65, 259])
def test_the_inverse_equals_the_general_one(size: int) -> None:
    _, _, gram = problem(1, size)
    moments = damped(gram)
    exact = np.linalg.inv(moments)
    # Backward stable steps: no more than roundings of float64, as often as there are columns, times the condition.
    bound = size * np.finfo(np.float64).eps * np.linalg.cond(moments) * np.abs(exact).max()
    np.testing.assert_allclose(inverse(moments), exact, rtol=0, atol=bound)


def test_the_inverse_is_stable_where_few_inputs_carry_nearly_all() -> None:
    rng = np.random.default_rng(0)
    # Most directions are a ten-thousandth of the largest, as behind massive activations.
    basis, _ = np.linalg.qr(rng.standard_normal((512, 512)))
    moments = (basis * np.geomspace(1, 1e-4, 512)) @ basis.T
    found = inverse(moments.astype(np.float32))
    np.testing.assert_allclose(found @ moments, np.eye(512), rtol=0, atol=1e4 * 512 * np.finfo(np.float32).eps)


def test_a_matrix_that_is_not_positive_definite_has_no_inverse() -> None:
    with pytest.raises(GossamerError, match="not positive semidefinite"):
        inverse(np.diag([1.0, -1.0]))


@pytest.mark.parametrize("tokens", [1, 10])
@pytest.mark.parametrize("method", CALIBRATED)
def test_singular_moments_and_dead_inputs(method: str, tokens: int) -> None:
    weight, x, _ = problem(8, 40, tokens=tokens)
    x[:, [3, 17, 39]] = 0
    pruned = apply(method, weight, x.T @ x, Target(0.5))
    assert np.isfinite(pruned).all()
    assert (pruned == 0).sum() == weight.size // 2
    assert (pruned[:, [3, 17, 39]] == 0).all()  # what no input reaches goes first


@pytest.mark.parametrize("method", CALIBRATED)
def test_inputs_that_are_all_zero(method: str) -> None:
    weight, _, gram = problem(8, 40)
    pruned = apply(method, weight, 0 * gram, Target(0.5))
    assert np.isfinite(pruned).all()
    assert (pruned == 0).sum() == weight.size // 2


def test_sparsegpt_refuses_moments_that_are_none() -> None:
    weight, _, gram = problem(8, 40)
    with pytest.raises(GossamerError, match="positive semidefinite"):
        sparsegpt(weight, gram - 2 * np.diag(np.diagonal(gram)), Target(0.5))


@pytest.mark.parametrize(
    ("sparsity", "pattern", "message"),
    [
        (None, None, "either a sparsity or"),
        (0.5, (2, 4), "either a sparsity or"),
        (1.0, None, "below 1, got 1.0"),
        (-0.1, None, "got -0.1"),
        (float("nan"), None, "got nan"),
        (None, (0, 4), "got 0:4"),
        (None, (5, 4), "got 5:4"),
    ],
)
def test_targets_that_make_no_sense(sparsity: Any, pattern: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        Target.parse(sparsity, pattern)


CONFIG = Sizes(
    hidden=32,
    layers=3,
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


def walk(model: ReferenceModel, windows: Any, method: Method, tensors: Any, target: Target) -> list[Any]:
    calls: list[Any] = []

    def replace(name: str, values: Any, _branch: Any) -> Any:
        model.set_weight(name, values)
        return values

    prune_blocks(
        model,
        CONFIG,
        chunked(windows),
        {STORED: method},
        dict.fromkeys(tensors, Form(target)),
        lambda name: tensors[name],
        replace,
        lambda *call: calls.append(call),
    )
    return calls


class Spy:
    """Prunes by magnitude, and keeps what it is given."""

    def __init__(self) -> None:
        self.weights: list[Any] = []
        self.grams: list[Any] = []

    def __call__(self, weight: Any, gram: Any, target: Target, _present: Any) -> NDArray[np.float32]:
        self.weights.append(weight)
        self.grams.append(gram)
        return magnitude(weight, target)


@pytest.mark.parametrize("updates", [False, True])
def test_blocks_are_measured_behind_pruned_ones_and_aimed_at_the_dense_model(updates: bool) -> None:
    config = replace(Sizes.of(CONFIG), biases=("q", "o", "down")).describe()
    tensors = random_tensors(config)
    windows = np.random.default_rng(5).integers(0, CONFIG.vocab, (7, 20)).astype(np.int32)
    spy = Spy()
    model = ReferenceModel(config, tensors)
    calls = walk(model, windows, Method(spy, updates), tensors, Target(0.5))
    assert [call[:2] for call in calls] == [(0, 3), (1, 3), (2, 3), (3, 3)]

    # The same by hand, over all tokens at once, with the pruned weights that the walk chose.
    dense, pruned = ReferenceModel(config, tensors), ReferenceModel(config, tensors)
    wanted = hidden = dense.embed(windows.reshape(-1))
    seen = iter(zip(spy.weights, spy.grams, strict=True))
    for layer in range(CONFIG.layers):
        linears = [linear for group in CONFIG.blocks[0].groups for linear in group.linears]
        wanted_out, wanted_inputs = dense.forward_block(layer, wanted, linears, 20)
        for linear in linears:
            if linear == "down":
                for other in linears[:-1]:
                    pruned.set_weight(f"layers.{layer}.{other}", model.tensors[f"layers.{layer}.{other}"])
                out, inputs = pruned.forward_block(layer, hidden, linears, 20)
            elif linear == "q":
                _, inputs = pruned.forward_block(layer, hidden, linears, 20)
            # Tokens of what is added to the stream count by the size that the next norm divides by.
            scale = 1.0
            if linear in ("o", "down"):
                scale = np.square(hidden if linear == "o" else out).mean(axis=1, keepdims=True) ** -0.5
            x = inputs[linear] * scale
            name = f"layers.{layer}.{linear}"
            if linear == "down":
                drift = ((wanted_out - out) * scale).T @ x
            else:
                drift = tensors[name] @ (wanted_inputs[linear] * scale - x).T @ x
            if linear == "o":
                drift = drift + ((wanted - hidden) * scale).T @ x
            aimed = tensors[name] + (drift @ np.linalg.inv(damped(x.T @ x)) if updates else 0)
            weight, gram = next(seen)
            np.testing.assert_allclose(gram, x.T @ x, rtol=0, atol=1e-6 * np.abs(gram).max())
            np.testing.assert_allclose(weight, aimed, rtol=0, atol=1e-6 * np.abs(aimed).max())
        pruned.set_weight(f"layers.{layer}.down", model.tensors[f"layers.{layer}.down"])
        hidden, _ = pruned.forward_block(layer, hidden, (), 20)
        wanted = wanted_out
    assert next(seen, None) is None


def test_the_walk_keeps_the_logits_nearer_with_better_methods_and_when_aimed() -> None:
    tensors = random_tensors(CONFIG)
    rng = np.random.default_rng(6)
    windows = rng.integers(0, CONFIG.vocab, (40, 24)).astype(np.int32)
    tokens = rng.integers(0, CONFIG.vocab, 48)
    expected = ReferenceModel(CONFIG, tensors).logits(tokens)
    errors = []
    for method in (*CALIBRATED.values(), Method(sparsegpt, False)):
        model = ReferenceModel(CONFIG, tensors)
        walk(model, windows, method, tensors, Target(0.4))
        errors.append(np.square(model.logits(tokens) - expected).mean())
    by_wanda, by_sparsegpt, by_admm, without_aim = errors
    assert by_admm < by_sparsegpt < without_aim < by_wanda


def test_inputs_that_are_not_finite_name_their_layer() -> None:
    tensors = random_tensors(CONFIG)
    tensors["layers.1.v"][3, 2] = np.nan
    model = ReferenceModel(CONFIG, tensors)
    with pytest.raises(GossamerError, match=r"layers\.1\.o: the inputs measured in calibration are not finite"):
        walk(model, np.zeros((2, 8), dtype=np.int32), Method(Spy(), True), tensors, Target(0.5))
