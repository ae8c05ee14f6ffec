"""Rounding to int4 while pruning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .linalg import Matrix


@dataclass(frozen=True)
class Int4:
    """Rounding to int4, such that `convert` finds the same codes and scales again.

    Attributes:
        group: Inputs that share a scale: 32, 64 or 128; 0 is the whole row.
    """

    group: int

    def span(self, cols: int) -> int:
        """Returns how many of `cols` inputs share a scale."""
        return self.group or cols

    def scales(self, values: Matrix) -> NDArray[np.float32]:
        """Returns the scale of every row for one group of inputs, values [rows, inputs]."""
        from .. import _core

        return _core.choose_scales(values, "int4", 0)[:, 0].astype(np.float32)

    def round(self, values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the nearest values that can be stored, one input of every row: [rows]."""
        steps = np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)
        return np.asarray(np.clip(np.rint(steps), -8, 7) * scales)
