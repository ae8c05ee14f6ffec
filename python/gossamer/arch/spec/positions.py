"""How positions come in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .parse import require, require_sizes


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021): pairs (j, j + n) of the first 2 n dimensions of a head are rotated.

    Attributes:
        inv_freq: The n inverse frequencies after any scaling, float32 values.
        scale: Factor on cosines and sines (YaRN, LongRoPE).
    """

    part: ClassVar[str] = "rope"
    inv_freq: tuple[float, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, self.inv_freq)), "inv_freq holds a value that is not finite")
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")


@dataclass(frozen=True)
class Learned:
    """Positions that were learned: a row each of the matrix "positions", added to the embedding.

    Attributes:
        count: Rows.
        offset: Row of the first position.
    """

    part: ClassVar[str] = "learned"
    count: int
    offset: int = 0

    def __post_init__(self) -> None:
        require_sizes(self, "count")
        require(
            type(self.offset) is int and 0 <= self.offset < self.count, f"offset must be in count, got {self.offset}"
        )
