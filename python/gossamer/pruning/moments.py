"""What pruning knows of a linear's inputs: their second moments, and what its outputs lack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import GossamerError
from .linalg import Gram, Matrix, damped, invert_lower
from .methods.method import Prepared


class Moments:
    """Second moments of a linear's inputs, and of what its outputs lack with them.

    Products of a chunk are float32 and add up in float64: relative errors of the sums stay near 1e-6, far below the
    damping.

    Attributes:
        gram: The sum of x x^T, [cols, cols].
        tokens: That were added as inputs.
    """

    def __init__(self) -> None:
        self.gram: Gram = np.zeros((0, 0))
        self.tokens = 0
        self._input_drift: Gram | None = None
        self._output_drift: Gram | None = None
        self._prepared: Prepared | None = None
        self._factor: Gram | None = None

    def add(self, x: Matrix) -> None:
        """Adds a chunk of inputs, [tokens, cols]."""
        self.tokens += len(x)
        self.add_product(x.T @ x)

    def add_product(self, product: Matrix | Gram) -> None:
        """Adds the x^T x of a chunk, [cols, cols], that was computed elsewhere."""
        self.gram = _plus(self.gram if self.gram.size else None, product)

    def add_drift(self, x: Matrix, inputs: Matrix | None, outputs: Matrix | None) -> None:
        """Adds what a chunk lacks.

        Args:
            x: Its inputs, [tokens, cols].
            inputs: What they lack of the inputs of the dense model, [tokens, cols].
            outputs: What the sum that the outputs go into lacks besides, [tokens, rows].
        """
        if inputs is not None:
            self._input_drift = _plus(self._input_drift, inputs.T @ x)
        if outputs is not None:
            self._output_drift = _plus(self._output_drift, outputs.T @ x)

    @property
    def finite(self) -> bool:
        """Whether all sums are."""
        sums = (self.gram, self._input_drift, self._output_drift)
        return all(np.isfinite(each).all() for each in sums if each is not None)

    def check(self, name: str) -> None:
        """Raises `GossamerError` where a sum is not finite."""
        if not self.finite:
            raise GossamerError(f"{name}: the inputs measured in calibration are not finite")

    def lacking(self, weight: Matrix) -> Matrix:
        """Returns the sum of e x^T, [rows, cols], where e is what the outputs of a weight [rows, cols] lack."""
        lacking = np.zeros(weight.shape, np.float32)
        if self._input_drift is not None:
            lacking += weight @ self._input_drift.astype(np.float32)
        if self._output_drift is not None:
            lacking += self._output_drift
        return lacking

    def prepared(self, prepare: Callable[[Gram], Prepared]) -> Prepared:
        """Returns a method that knows these inputs, the same for all linears that read them."""
        if self._prepared is None:
            self._prepared = prepare(self.gram)
        return self._prepared

    def aim(self, weight: Matrix) -> Matrix:
        """Returns the weight that comes nearest to the outputs that one [rows, cols] has in the dense model.

        Raises:
            GossamerError: the moments are not positive semidefinite, even with damping.
        """
        if self._factor is None:
            self._factor = damped(self.gram)
            invert_lower(self._factor)  # G^-1 is factor^T factor
        lacking = np.zeros(weight.shape)
        if self._input_drift is not None:
            lacking += weight @ self._input_drift
        if self._output_drift is not None:
            lacking += self._output_drift
        np.matmul(lacking @ self._factor.T, self._factor, out=lacking)
        lacking += weight
        return lacking.astype(np.float32)


def _plus(sums: Gram | None, product: Matrix | Gram) -> Gram:
    if sums is None:
        return product.astype(np.float64)
    sums += product
    return sums
