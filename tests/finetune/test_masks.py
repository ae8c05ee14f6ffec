"""Schedules of zeros: where they end, and that what is dropped stays dropped."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.errors import GossamerError  # noqa: E402
from gossamer.finetune.masks import Masks  # noqa: E402
from gossamer.finetune.options import Options  # noqa: E402


def parameters(sparsity: float = 0.0) -> dict[str, Any]:
    torch.manual_seed(0)
    values = {"layers.0.q.weight": torch.randn(24, 36), "layers.1.down.weight": torch.randn(7, 11)}
    for value in values.values():
        value[torch.rand(value.shape) < sparsity] = 0
    return values


@pytest.mark.parametrize("scores", ["magnitude", "movement"])
@pytest.mark.parametrize("begin", [0.0, 0.3])
def test_cubic_reaches_what_is_asked_exactly_and_revives_nothing(scores: str, begin: float) -> None:
    values = parameters(begin)
    masks = Masks(values, "cubic", 0.7, scores)
    before = {name: keep.clone() for name, keep in masks.keep.items()}
    start, fractions = masks.zeros, []
    for step in range(101):
        masks.observe(values, {name: torch.randn_like(value) for name, value in values.items()})
        zeros = masks.due(step, step / 100)
        if zeros:
            masks.drop(zeros, values)
            fractions.append((step / 100, masks.zeros))
        for name, keep in masks.keep.items():
            assert not (keep & ~before[name]).any()
            before[name] = keep.clone()
            values[name] += 0.1 * torch.randn_like(values[name])  # what is dropped may move meanwhile: it is masked
    for name, keep in masks.keep.items():
        assert int((~keep).sum()) == round(0.7 * values[name].numel())
    for progress, found in fractions:
        reached = 1 - (1 - min(progress / 0.7, 1.0)) ** 3
        assert found == pytest.approx(start + (0.7 - start) * reached, abs=0.02)


def test_more_zeros_than_cubic_is_asked_for_are_told() -> None:
    with pytest.raises(
        GossamerError, match=r"every matrix of the student has \d\d\.\d% zeros or more: sparsity 0\.2 raises"
    ):
        Masks(parameters(0.5), "cubic", 0.2)
    values = parameters(0.5)
    values["layers.0.q.weight"] = torch.randn(24, 36)  # which has none to begin with
    assert Masks(values, "cubic", 0.2).due(8, 1.0)


def test_dense_holds_nothing() -> None:
    values = parameters(0.5)
    masks = Masks(values, "dense")
    assert (masks.keep, masks.zeros, masks.due(0, 1.0)) == ({}, 0.0, {})
    with pytest.raises(GossamerError, match="no zeros to keep"):
        Masks(parameters())


@pytest.mark.parametrize(
    ("scores", "step_tokens", "raising", "steps"),
    [
        # Turns an eighth of the raising apart, which 300 steps take.
        ("sparsegpt", 1024, 0.3, [40, 80, 120, 160, 200, 240, 280, 300]),
        ("admm", 256, 0.3, [64, 128, 192, 256, 300]),  # 8,192 tokens are 32 steps
        ("movement", 256, 0.7, [*range(8, 697, 8)]),
        ("movement", 256, 0.02, [8, 16, 20]),
    ],
)
def test_masks_that_are_solved_for_are_few(scores: str, step_tokens: int, raising: float, steps: list[int]) -> None:
    masks = Masks(parameters(), "cubic", 0.7, scores, step_tokens, raising)
    assert [step for step in range(700) if masks.due(step, step / 1000)] == steps


def test_zeros_are_raised_early_where_values_are_solved_for() -> None:
    cubic = {"schedule": "cubic", "sparsity": 0.5}
    assert Options(**cubic).raised_within == Options(scores="movement", **cubic).raised_within == 0.7
    assert Options(scores="admm", **cubic).raised_within == Options(scores="sparsegpt", **cubic).raised_within == 0.3
    assert Options(scores="sparsegpt", raising=0.02, **cubic).raised_within == 0.02
