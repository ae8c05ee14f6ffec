"""How a budget of zeros is divided among the matrices: the one place that turns what was measured into targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..progress import Progress
from .linalg import Matrix
from .masks import Target

if TYPE_CHECKING:
    from .sensitivity import Probe

Put = Callable[[str, Matrix], None]

# How far OWL goes from the sparsity asked for, either way, as in its paper.
_OWL_SPAN = 0.08
# The same of `by_divergence`, since what is measured at one sparsity tells little about one far from it.
_SPAN = 0.25
# The power of its sparsity that the cost of a matrix is taken to grow with. The smallest squares alone add up to the
# third; higher powers trust the measurement less, and stay nearer to uniform. 4 and 6 did alike and better than 9 on
# documents of the calibration text that were left out, with Wanda.
_POWER = 5


@dataclass(frozen=True)
class Size:
    """What a matrix has before it is pruned.

    Attributes:
        entries: Its entries.
        zeros: Those of them that are zero, and stay so.
    """

    entries: int
    zeros: int


def uniform(target: Target, sizes: Mapping[str, Size]) -> dict[str, Target]:
    """Gives the same target to all.

    Args:
        target: The target.
        sizes: Of each matrix, by its name.

    Returns:
        A target for each name.
    """
    return dict.fromkeys(sizes, target)


def by_outliers(target: Target, sizes: Mapping[str, Size], outliers: Mapping[str, float]) -> dict[str, Target]:
    """Gives fewer zeros to matrices with more outliers (OWL, Yin et al. 2023).

    Args:
        target: What all matrices together are to have; unstructured.
        sizes: Of each matrix, by its name.
        outliers: The share of outliers in each matrix or in the block that it is part of.

    Returns:
        Targets whose zeros add up to those of `target` over all entries.
    """
    share = np.array([outliers[name] for name in sizes])
    less = 2 * _OWL_SPAN * (share - share.min()) / (float(np.ptp(share)) or 1.0)
    return _within_budget(target, sizes, lambda level: level - less, 2 * _OWL_SPAN)


def by_divergence(target: Target, sizes: Mapping[str, Size], divergence: Mapping[str, float]) -> dict[str, Target]:
    """Gives fewer zeros to matrices that matter more, such that the sum of what all cost is smallest.

    A matrix of n entries that costs d at the sparsity S asked for is taken to cost d (s / S)^5 at the sparsity s. Under
    one budget the sum is smallest where one more zero costs the same everywhere, which makes s proportional to the
    fourth root of n / d.

    Args:
        target: What all matrices together are to have; unstructured.
        sizes: Of each matrix, by its name.
        divergence: How far the model's predictions move when that matrix alone is pruned to the target.

    Returns:
        Targets whose zeros add up to those of `target` over all entries.
    """
    costs = np.array([divergence[name] / size.entries for name, size in sizes.items()])
    least = costs.max() * 1e-9 or 1.0  # what costs nothing is pruned as far as the span lets it
    cheap = np.maximum(costs, least) ** (-1 / (_POWER - 1))
    return _within_budget(target, sizes, lambda level: level * cheap / cheap.min(), _SPAN)


def _within_budget(
    target: Target, sizes: Mapping[str, Size], wanted: Callable[[float], NDArray[np.float64]], span: float
) -> dict[str, Target]:
    """Returns the targets of the highest level that stays within the budget, and what rounding leaves of it.

    Args:
        target: The budget, as the sparsity over all.
        sizes: Of each matrix, by its name.
        wanted: Gives the sparsities at a level from 0 to 2, none of which falls with the level.
        span: None goes further than this from the target, nor nearer than halfway to 1. Zeros that are there already
            are the least that a matrix can have, and count.
    """
    entries = np.array([size.entries for size in sizes.values()], dtype=np.int64)
    there = np.array([size.zeros for size in sizes.values()], dtype=np.int64)
    below, above = max(target.sparsity - span, 0.0), target.sparsity + min(span, (1 - target.sparsity) / 2)
    even = target.sparsity * entries
    lowest = np.maximum(np.minimum(np.ceil(below * entries), np.floor(even)).astype(np.int64), there)
    highest = np.maximum(np.maximum(np.floor(above * entries), np.ceil(even)).astype(np.int64), lowest)
    budget = target.zeros(int(entries.sum()))

    def zeros(level: float) -> NDArray[np.int64]:
        return np.clip((wanted(level) * entries).astype(np.int64), lowest, highest)

    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if zeros(middle).sum() <= budget else (low, middle)
    counts = zeros(low)
    for index in np.argsort(-entries, kind="stable"):
        counts[index] += max(0, min(budget - int(counts.sum()), int(highest[index] - counts[index])))
    return {
        name: Target(count / size.entries) for (name, size), count in zip(sizes.items(), counts.tolist(), strict=True)
    }


@dataclass(frozen=True)
class Allocation:
    """A way to divide zeros.

    Attributes:
        divide: Makes targets of the target for all, the sizes of the matrices and what was measured of each.
        measure: Measures that on a probe; told the target, what puts a matrix into the engine, and whom to report to.
    """

    divide: Callable[[Target, Mapping[str, Size], Mapping[str, float]], dict[str, Target]]
    measure: Callable[[Probe, Target, Put, Progress], dict[str, float]] | None = None


ALLOCATIONS = {
    "uniform": Allocation(lambda target, sizes, _: uniform(target, sizes)),
    "owl": Allocation(by_outliers, lambda probe, _target, _put, progress: probe.outliers(progress)),
    "divergence": Allocation(
        by_divergence, lambda probe, target, put, progress: probe.divergence(target, put, progress)
    ),
}
