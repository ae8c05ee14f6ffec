"""How tokens, or frames of sound, become the stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .norm import Norm
from .parse import LARGEST, require, require_sizes

TABLES = ("positions", "types", "relative_bias")
"""Matrices of a few rows, of which those that a token needs are looked up."""


class Added:
    """Positions that come in as what is added to the rows of the embedding.

    Attributes:
        part: Its tag in stored descriptions.
        offset: What the first position counts as.
    """

    part: ClassVar[str]
    offset: int

    def check(self, hidden: int, context: int) -> None:
        """Raises `GossamerError` where they are not for such a width or so many tokens."""
        raise NotImplementedError

    def tensors(self, hidden: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002 - as in the class below
        """Returns the shapes of what they have, by name."""
        return {}


@dataclass(frozen=True)
class Learned(Added):
    """Positions that were learned: a row each of the matrix "positions".

    Attributes:
        count: Rows.
        offset: Row of the first position.
    """

    part: ClassVar[str] = "learned"
    count: int
    offset: int = 0

    def __post_init__(self) -> None:
        require_sizes(self, "count")
        fair = type(self.offset) is int and 0 <= self.offset < self.count
        require(fair, f"offset must be in count, got {self.offset}")

    def check(self, hidden: int, context: int) -> None:  # noqa: ARG002 - rows of any width can be learned
        """See `Added`."""
        most = self.count - self.offset
        require(context <= most, f"context {context} is beyond the {most} positions that were learned")

    def tensors(self, hidden: int) -> dict[str, tuple[int, ...]]:
        """See `Added`."""
        return {"positions": (self.count, hidden)}


@dataclass(frozen=True)
class Sinusoids(Added):
    """Positions as sines of some frequencies and, behind them, cosines (Vaswani et al. 2017).

    Attributes:
        frequencies: Float32 values; twice as many numbers are the width of the stream.
        offset: What the first position counts as.
    """

    part: ClassVar[str] = "sinusoids"
    frequencies: tuple[float, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, self.frequencies)), "frequencies holds a value that is not finite")
        require(type(self.offset) is int and 0 <= self.offset <= LARGEST, f"bad offset {self.offset!r:.80}")

    def check(self, hidden: int, context: int) -> None:  # noqa: ARG002 - there are as many as one likes
        """See `Added`."""
        require(2 * len(self.frequencies) == hidden, f"frequencies must be {hidden // 2}")


@dataclass(frozen=True)
class Mel:
    """How frames of a spectrum become the stream: two convolutions with a GELU behind each (Radford et al. 2022).

    Both read three frames, "conv1" [hidden, 3 bins] and "conv2" [hidden, 3 hidden] by channel; the second, those around
    every other one, so that there are half as many states as frames.

    Attributes:
        bins: Of a frame.
    """

    bins: int

    def __post_init__(self) -> None:
        require_sizes(self, "bins")


@dataclass(frozen=True)
class Embedding:
    """How tokens become the stream: a row each of the matrix "embed".

    Attributes:
        positions: What is added by the position of a token.
        scale: Factor on the rows of the matrix, a float32 value.
        project: Width of those rows, which the matrix "embed_project" takes to the stream's; None: they have it.
        norm: Behind everything.
        types: Rows of the matrix "types", of which one is added by the type that each token is given (Devlin et al.
            2019); 0: none.
        shared: Whether it is an encoder's whose matrix "embed" is the decoder's.
        mel: How frames come in, where there are no tokens.
    """

    positions: Learned | Sinusoids | None = None
    scale: float = 1.0
    project: int | None = None
    norm: Norm | None = None
    types: int = 0
    shared: bool = False
    mel: Mel | None = None

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")
        if self.project is not None:
            require_sizes(self, "project")
        if self.types != 0:
            require_sizes(self, "types")
        plain = not (self.project or self.types or self.shared) and self.scale == 1
        require(self.mel is None or plain, "mel goes with neither project, types, shared nor scale")

    def tensors(self, hidden: int, vocab: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of what it has, by name."""
        found: dict[str, tuple[int, ...]] = {}
        if self.mel:
            found |= {"conv1": (hidden, 3 * self.mel.bins), "conv1.bias": (hidden,)}
            found |= {"conv2": (hidden, 3 * hidden), "conv2.bias": (hidden,)}
        elif not self.shared:
            found["embed"] = (vocab, self.project or hidden)
        if self.project:
            found["embed_project"] = (hidden, self.project)
        if self.positions:
            found |= self.positions.tensors(hidden)
        if self.types:
            found["types"] = (self.types, hidden)
        return found | sized(self.norm.vectors("embed_norm", hidden) if self.norm else {})


def sized(vectors: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of vectors of some lengths."""
    return {name: (size,) for name, size in vectors.items()}
