"""Attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .linear import Linear, check_biases
from .parse import LARGEST, require, require_sizes
from .positions import Rope


def attention_scale(width: int) -> float:
    """Returns 1 / sqrt(width) as float32 arithmetic has it."""
    return float(np.float32(1) / np.sqrt(np.float32(width)))


@dataclass(frozen=True)
class Attention:
    """Causal attention over the sequence itself, with grouped queries (Ainslie et al. 2023).

    Attributes:
        heads: Query heads.
        kv_heads: Key/value heads; divides `heads`.
        head_dim: Width of one head.
        scale: Factor on the products of queries and keys, a float32 value.
        positions: How positions come in; None leaves them out.
        biases: Linears, of q, k, v and o, that have a bias.
    """

    part: ClassVar[str] = "attention"
    name: ClassVar[str] = "attn"
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    positions: Rope | None
    biases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_sizes(self, "heads", "kv_heads", "head_dim")
        require(self.heads % self.kv_heads == 0, f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        require(self.heads * self.head_dim <= LARGEST, f"{self.heads} heads of {self.head_dim} are too wide")
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")
        if self.positions is not None:
            half = self.head_dim // 2
            require(len(self.positions.inv_freq) <= half, f"inv_freq must be at most {half} numbers")
        check_biases(self, ("q", "k", "v", "o"))

    def linears(self, hidden: int) -> dict[str, Linear]:
        """Returns its matrices by their short names, in the order of the computation."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
        return {name: Linear(*shape, name in self.biases) for name, shape in shapes.items()}

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Linears that read the same inputs; the output of the last group joins the stream."""
        return (("q", "k", "v"), ("o",))

    def vectors(self) -> dict[str, int]:
        """Returns the lengths of the vectors that it has beside biases."""
        return {}
