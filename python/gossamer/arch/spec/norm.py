"""Norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .parse import require


@dataclass(frozen=True)
class Norm:
    """A norm over the width of the stream.

    Attributes:
        kind: "rms": x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019); "layer": the same of x - mean(x) (Ba et al.
            2016).
        eps: Added to the mean square.
        bias: Whether a bias is added behind the weight; "layer" alone has one.
        weight: Whether the result is multiplied by a weight.
    """

    kind: Literal["rms", "layer"]
    eps: float
    bias: bool = False
    weight: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.eps < math.inf, f"eps must be finite and not negative, got {self.eps}")
        require(self.kind == "layer" or not self.bias, f"a norm of kind {self.kind!r} has no bias")
        require(self.weight or not self.bias, "a norm without a weight has no bias")

    def vectors(self, name: str, width: int) -> dict[str, int]:
        """Returns the lengths of what a norm of some name has."""
        return ({name: width} if self.weight else {}) | ({f"{name}.bias": width} if self.bias else {})
