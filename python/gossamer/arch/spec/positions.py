"""How positions come into attention."""

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
        interleaved: Whether the pairs are (2 j, 2 j + 1) instead (GPT-J).
    """

    part: ClassVar[str] = "rope"
    inv_freq: tuple[float, ...]
    scale: float = 1.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, self.inv_freq)), "inv_freq holds a value that is not finite")
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")


@dataclass(frozen=True)
class Alibi:
    """Positions as distances (Press et al. 2022): slope * distance is taken off the score of a query with a key.

    Attributes:
        slopes: Of each query head, float32 values; `gossamer.arch.alibi` computes the usual ones.
    """

    part: ClassVar[str] = "alibi"
    slopes: tuple[float, ...]

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, self.slopes)), "slopes holds a value that is not finite")


@dataclass(frozen=True)
class RelativeBias:
    """Positions as what is added to a score by the distance of a key from its query (Raffel et al. 2020).

    Distances come in buckets, of each of which each query head has a value: the matrix "relative_bias" [heads, buckets]
    of the stack, that all attentions in it share.

    Attributes:
        buckets: How many there are.
        back: The bucket of keys at the query's own position, one before it, two, …; the last one is for all beyond.
        ahead: The same of keys behind it, from the query's own position on; empty where none is seen.
    """

    part: ClassVar[str] = "relative_bias"
    buckets: int
    back: tuple[int, ...]
    ahead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_sizes(self, "buckets", most=1 << 16)
        for name in ("back", "ahead"):
            numbers = getattr(self, name)
            fair = len(numbers) <= 1 << 16 and all(type(one) is int and 0 <= one < self.buckets for one in numbers)
            require(fair, f"{name} must be numbers of the {self.buckets} buckets")
        require(len(self.back) > 0, "back must have a bucket")


@dataclass(frozen=True)
class QueryScale:
    """A factor on queries that grows with their position: 1 + beta * log(1 + floor(position / length)) (Llama 4).

    Attributes:
        beta: How fast it grows.
        length: Positions between two steps.
    """

    beta: float
    length: int

    def __post_init__(self) -> None:
        require(0 <= self.beta < math.inf, f"beta must be finite and not negative, got {self.beta}")
        require_sizes(self, "length")
