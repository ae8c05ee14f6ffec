"""What a pruning method is that looks at the inputs of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..linalg import Gram, Mask, Matrix
from ..masks import Target

Solver = Callable[[Matrix, Gram, Target, Mask], Matrix]


class Prepared(Protocol):
    """A method that knows the inputs already; see `gossamer.pruning.methods.admm.Admm`."""

    def __call__(self, weight: Matrix, target: Target, present: Mask, lacking: Matrix | None = None) -> Matrix:
        """Prunes a matrix [rows, cols] whose outputs are to have what they lack besides."""


@dataclass(frozen=True)
class Method:
    """A method that looks at the inputs of a matrix.

    Attributes:
        solve: What it does to a matrix: weight [rows, cols], gram [cols, cols], target, present [rows, cols].
        updates: Whether it changes the values that it keeps.
        prepare: Does once what is the same for all matrices that read the same inputs, gram [cols, cols].
    """

    solve: Solver
    updates: bool
    prepare: Callable[[Gram], Prepared] | None = None
