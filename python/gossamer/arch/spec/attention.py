"""Attention, and what its heads have beside their linears."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .linear import Linear, check_biases
from .mixer import Group, Mixer
from .norm import Norm
from .parse import LARGEST, require, require_sizes
from .positions import Alibi, QueryScale, RelativeBias, Rope


def attention_scale(width: int) -> float:
    """Returns 1 / sqrt(width) as float32 arithmetic has it."""
    return float(np.float32(1) / np.sqrt(np.float32(width)))


@dataclass(frozen=True)
class QkNorm:
    """Norms of queries and keys, before they are rotated (Henry et al. 2020).

    Attributes:
        norm: Of what kind they are.
        over: What each is taken over: a "head", or the "row" of all heads.
        own: Whether each head has its own norm, "q_norm_3", where otherwise all share "q_norm".
    """

    norm: Norm
    over: Literal["head", "row"] = "head"
    own: bool = False

    def __post_init__(self) -> None:
        require(self.over == "head" or not self.own, "own norms are over a head, not over a row")

    def norms(self, name: str, heads: int, head_dim: int) -> dict[str, int]:
        """Returns the norms of the heads of queries, "q", or of keys, "k": their names and what they are taken over."""
        if self.own:
            return {f"{name}_norm_{head}": head_dim for head in range(heads)}
        return {f"{name}_norm": heads * head_dim if self.over == "row" else head_dim}


@dataclass(frozen=True)
class Attention(Mixer):
    """Attention over the sequence itself or over another one, with grouped queries (Ainslie et al. 2023).

    What comes out of q, k and v is normed, clipped, and, but for values, rotated; products of queries and keys are
    scaled, capped, and shifted by their distance (ALiBi, relative biases). Names of all that reads a memory begin with
    "cross_".

    Attributes:
        heads: Query heads.
        kv_heads: Key/value heads; divides `heads`.
        head_dim: Width of one head.
        scale: Factor on the products of queries and keys, a float32 value.
        positions: How positions come in; None leaves them out.
        biases: Linears, of q, k, v and o, that have a bias.
        window: Positions that a token sees, the last of them its own, and where it is not causal as many behind it;
            None for all.
        softcap: A scaled product x becomes softcap * tanh(x / softcap); None leaves it.
        clip: Queries, keys and values are kept within -clip and clip; None leaves them.
        qk_norm: Norms of queries and keys, if any.
        sinks: Whether each query head has a score, of the vector "sinks", that takes part in the softmax and has no
            value (Xiao et al. 2024).
        query_scale: A factor on queries by their position, if any.
        causal: Whether no token sees those behind it.
        reads: Whether keys and values are of the sequence itself, or of the states that an encoder gave of another, the
            "memory" (Bahdanau et al. 2015).
        values: Whether values come out of v, or are what comes out of k: then there is no v (Gemma 4).
        v_norm: Norm of the values of each head, if any.
    """

    part: ClassVar[str] = "attention"
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    positions: Rope | Alibi | RelativeBias | None
    biases: tuple[str, ...] = ()
    window: int | None = None
    softcap: float | None = None
    clip: float | None = None
    qk_norm: QkNorm | None = None
    sinks: bool = False
    query_scale: QueryScale | None = None
    causal: bool = True
    reads: Literal["self", "memory"] = "self"
    values: Literal["own", "keys"] = "own"
    v_norm: Norm | None = None

    def __post_init__(self) -> None:
        require_sizes(self, "heads", "kv_heads", "head_dim")
        require(self.heads % self.kv_heads == 0, f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        require(self.heads * self.head_dim <= LARGEST, f"{self.heads} heads of {self.head_dim} are too wide")
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")
        if isinstance(self.positions, Rope):
            half = self.head_dim // 2
            require(len(self.positions.inv_freq) <= half, f"inv_freq must be at most {half} numbers")
        if isinstance(self.positions, Alibi):
            count = len(self.positions.slopes)
            require(count == self.heads, f"slopes must be {self.heads} numbers, one a head, got {count}")
        if self.window is not None:
            require_sizes(self, "window")
        for name in ("softcap", "clip"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"{name} must be above 0, got {value}")
        check_biases(self, tuple(name for name in ("q", "k", "v", "o") if name != "v" or self.values == "own"))
        if isinstance(self.positions, RelativeBias):
            fair = self.causal != bool(self.positions.ahead)
            require(fair, "ahead must have buckets where attention is not causal, and none where it is")
        require(self.causal or not isinstance(self.positions, Alibi), "slopes are for causal attention")
        if self.reads == "memory":
            require(self.values == "own", "values must be 'own' where a memory is read")
            require(not self.causal, "causal must be false where a memory is read")
            for name in ("positions", "window", "query_scale"):
                require(getattr(self, name) is None, f"{name} must be null where a memory is read")

    @property
    def name(self) -> str:
        """See `Mixer`."""
        return "attn" if self.reads == "self" else "cross"

    @property
    def _prefix(self) -> str:
        return "" if self.reads == "self" else "cross_"

    def linears(self, hidden: int) -> dict[str, Linear]:
        """See `Mixer`."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
        if self.values == "keys":
            del shapes["v"]
        return {self._prefix + name: Linear(*shape, name in self.biases) for name, shape in shapes.items()}

    @property
    def groups(self) -> tuple[Group, ...]:
        """See `Mixer`."""
        if self.reads == "self":
            inputs = ("q", "k", "v") if self.values == "own" else ("q", "k")
            return Group(inputs), Group(("o",), joins=True)
        memory = Group(("cross_k", "cross_v"), memory=True)
        return Group(("cross_q",)), memory, Group(("cross_o",), joins=True)

    def vectors(self) -> dict[str, int]:
        """See `Mixer`."""
        found: dict[str, int] = {}
        if self.qk_norm is not None:
            for side, heads in (("q", self.heads), ("k", self.kv_heads)):
                for name, width in self.qk_norm.norms(self._prefix + side, heads, self.head_dim).items():
                    found |= self.qk_norm.norm.vectors(name, width)
        if self.v_norm is not None:
            found |= self.v_norm.vectors(f"{self._prefix}v_norm", self.head_dim)
        return found | {f"{self._prefix}sinks": self.heads} if self.sinks else found
