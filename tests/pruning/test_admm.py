"""What ADMM's steps come to, and the thresholds of masks on the way there."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.pruning import Target, admm
from gossamer.pruning.linalg import damped
from gossamer.pruning.methods import admm as alternating
from problems import error, problem


def test_admm_values_tend_to_the_best_for_their_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, gram = problem(6, 40, seed=4)
    moments = damped(gram)

    def best_for(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        best = np.zeros_like(weight, dtype=np.float64)
        for row, kept in enumerate(mask):
            best[row, kept] = np.linalg.solve(moments[np.ix_(kept, kept)], moments[kept] @ weight[row])
        return best

    pruned = admm(weight, gram, Target(0.5))
    best = best_for(pruned != 0)
    masked = np.where(pruned != 0, weight, 0)
    assert error(weight, best, x) <= error(weight, pruned, x) < error(weight, masked, x) / 4
    monkeypatch.setattr(alternating, "_STEPS", 200)
    settled = admm(weight, gram, Target(0.5))
    assert error(weight, settled, x) <= error(weight, best_for(settled != 0), x) * 1.05


@pytest.mark.parametrize("cols", [960, 900, 1])
def test_thresholds_of_masks_that_are_not_final_see_every_column(cols: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternating, "_SCORES", 2000)
    rng = np.random.default_rng(0)
    scores = rng.random((30, cols), np.float32) * np.exp(rng.standard_normal(cols)).astype(np.float32)
    for fraction in (0.1, 0.5, 0.9):
        below = np.mean(scores < alternating.lower_bound(scores, fraction))
        assert abs(below - fraction) < 5 * (fraction * (1 - fraction) / min(scores.size, 1000)) ** 0.5
