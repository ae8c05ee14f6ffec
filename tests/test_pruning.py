"""Pruning: the methods on small matrices, the walk on a small model, whole checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.config import DecoderConfig
from gossamer.errors import GossamerError
from gossamer.pruning import Target, magnitude, sparsegpt, wanda
from gossamer.pruning.masks import keep_pattern
from gossamer.pruning.sequential import GROUPS, prune_blocks
from gossamer.pruning.solvers import CALIBRATED, METHODS, inverse_factor
from reference_model import ReferenceModel, random_tensors

PATTERNS = [(2, 4), (1, 4), (4, 8), (3, 5), (16, 32), (1, 1), (4, 4)]


def problem(rows: int, cols: int, tokens: int = 0, seed: int = 0) -> tuple[Any, Any, Any]:
    """Returns a weight, correlated inputs [tokens, cols] and their second moments."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, cols)).astype(np.float32)
    common = rng.standard_normal((tokens or 4 * cols, max(1, cols // 4)))
    x = common @ rng.standard_normal((common.shape[1], cols)) + 0.3 * rng.standard_normal((len(common), cols))
    x *= np.exp(rng.standard_normal(cols))
    return weight, x, x.T @ x


def apply(method: str, weight: Any, gram: Any, target: Target) -> NDArray[np.float32]:
    return magnitude(weight, target) if method == "magnitude" else CALIBRATED[method](weight, gram, target)


def error(weight: Any, pruned: Any, x: Any) -> float:
    return float(np.square(x @ (weight - pruned).T).sum() / np.square(x @ weight.T).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 128), (7, 129), (33, 300), (64, 40)])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.5, 0.97])
def test_unstructured_zeros_are_exactly_as_many_as_asked(method: str, shape: tuple[int, int], sparsity: float) -> None:
    weight, _, gram = problem(*shape)
    pruned = apply(method, weight, gram, Target(sparsity))
    assert pruned.shape == weight.shape
    assert pruned.dtype == np.float32
    assert np.isfinite(pruned).all()
    zeros = pruned == 0
    if method == "wanda":
        assert (zeros.sum(axis=1) == round(sparsity * shape[1])).all()
    else:
        assert zeros.sum() == round(sparsity * weight.size)
    if sparsity == 0:
        np.testing.assert_array_equal(pruned, weight)
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


def test_magnitude_keeps_the_largest_and_wanda_weighs_them_by_their_inputs() -> None:
    weight = np.array([[1.0, -2.0, 3.0, -4.0], [8.0, 7.0, -6.0, 5.0]], dtype=np.float32)
    gram = np.diag([100.0, 1.0, 1.0, 0.01])
    np.testing.assert_array_equal(magnitude(weight, Target(0.5)), [[0, 0, 0, 0], [8, 7, -6, 5]])
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


@pytest.mark.parametrize("target", [Target(0.5), Target(0.7), Target.parse(None, (2, 4))])
def test_sparsegpt_beats_wanda_beats_magnitude_on_correlated_inputs(target: Target) -> None:
    weight, x, gram = problem(48, 192, seed=2)
    errors = [error(weight, apply(method, weight, gram, target), x) for method in ("magnitude", "wanda", "sparsegpt")]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]


def test_inverse_factor_is_upper_and_inverts() -> None:
    _, _, gram = problem(1, 60)
    factor = inverse_factor(gram).astype(np.float64)
    assert not np.tril(factor, -1).any()
    damped = gram / np.diagonal(gram).mean() + 0.01 * np.eye(60)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(60), atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 10])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_singular_moments_and_dead_inputs(method: str, tokens: int) -> None:
    weight, x, _ = problem(8, 40, tokens=tokens)
    x[:, [3, 17, 39]] = 0
    pruned = apply(method, weight, x.T @ x, Target(0.5))
    assert np.isfinite(pruned).all()
    assert (pruned == 0).sum() == weight.size // 2
    assert (pruned[:, [3, 17, 39]] == 0).all()  # what no input reaches goes first


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
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


CONFIG = DecoderConfig(
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
)


def walk(model: ReferenceModel, windows: Any, solve: Any, tensors: Any, target: Target) -> list[tuple[int, int, str]]:
    calls: list[tuple[int, int, str]] = []
    prune_blocks(
        model,
        CONFIG.layers,
        windows,
        solve,
        target,
        lambda name: tensors[name],
        model.set_weight,
        lambda done, total, what: calls.append((done, total, what)),
    )
    return calls


def test_each_block_is_measured_on_the_outputs_of_pruned_blocks() -> None:
    tensors = random_tensors(CONFIG)
    windows = np.random.default_rng(5).integers(0, CONFIG.vocab, (7, 20)).astype(np.int32)
    seen = []

    def spy(weight: Any, gram: Any, target: Target) -> NDArray[np.float32]:
        seen.append(gram)
        return magnitude(weight, target)

    model = ReferenceModel(CONFIG, tensors)
    calls = walk(model, windows, spy, tensors, Target(0.5))
    assert [call[0] for call in calls] == [0, 1, 2, 3]

    # The same by hand: dense weights in the block that is measured, pruned ones in those before it.
    by_hand = ReferenceModel(CONFIG, tensors)
    hidden = by_hand.embed(windows.reshape(-1))
    expected = []
    for layer in range(CONFIG.layers):
        linears = [linear for group in GROUPS for linear in group]
        _, inputs = by_hand.forward_block(layer, hidden, linears, 20)
        expected += [inputs[linear].T @ inputs[linear] for linear in linears]
        for linear in linears:
            name = f"layers.{layer}.{linear}"
            by_hand.set_weight(name, magnitude(tensors[name], Target(0.5)))
        hidden, _ = by_hand.forward_block(layer, hidden, (), 20)
    assert len(seen) == len(expected)
    for actual, gram in zip(seen, expected, strict=True):
        np.testing.assert_allclose(actual, gram, rtol=1e-9, atol=1e-9 * np.abs(gram).max())
    dense = ReferenceModel(CONFIG, tensors)
    _, inputs = dense.forward_block(0, dense.embed(windows.reshape(-1)), (), 20)
    assert not np.allclose(model.forward_block(0, model.embed(windows.reshape(-1)), (), 20)[0], _)


def test_the_walk_keeps_the_logits_nearer_with_sparsegpt_than_with_wanda() -> None:
    tensors = random_tensors(CONFIG)
    rng = np.random.default_rng(6)
    windows = rng.integers(0, CONFIG.vocab, (40, 24)).astype(np.int32)
    tokens = rng.integers(0, CONFIG.vocab, 48)
    expected = ReferenceModel(CONFIG, tensors).logits(tokens)
    errors = []
    for solve in (wanda, sparsegpt):
        model = ReferenceModel(CONFIG, tensors)
        walk(model, windows, solve, tensors, Target(0.4))
        errors.append(np.square(model.logits(tokens) - expected).mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("where", ["weight", "inputs"])
def test_values_that_are_not_finite_name_their_layer(where: str) -> None:
    tensors = random_tensors(CONFIG)
    tensors["layers.1.o" if where == "weight" else "layers.1.v"][3, 2] = np.nan
    model = ReferenceModel(CONFIG, tensors)
    windows = np.zeros((2, 8), dtype=np.int32)
    if where == "weight":
        model.set_weight("layers.1.o", np.nan_to_num(tensors["layers.1.o"]))
    name = "layers.1.v" if where == "inputs" else "layers.1.o"
    with pytest.raises(GossamerError, match=f"{name}.*" if where == "weight" else "layers.1.[ov]"):
        walk(model, windows, sparsegpt, tensors, Target(0.5))
