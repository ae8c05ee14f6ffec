"""The whole: the way in, the stack, the way out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from .linear import Linear
from .norm import Norm
from .parse import parse, plain, require, require_sizes
from .positions import Learned
from .stack import Block, Stack


@dataclass(frozen=True)
class Embedding:
    """How tokens become the stream: a row each of the matrix "embed".

    Attributes:
        positions: What is added by the position of a token.
        scale: Factor on the rows of the matrix, a float32 value.
        project: Width of those rows, which the matrix "embed_project" takes to the stream's; None: they have it.
        norm: Behind everything.
    """

    positions: Learned | None = None
    scale: float = 1.0
    project: int | None = None
    norm: Norm | None = None

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")
        if self.project is not None:
            require_sizes(self, "project")


@dataclass(frozen=True)
class Head:
    """How the stream becomes logits.

    Attributes:
        tied: Whether its matrix is the embedding's.
        bias: Whether a bias is added to the products.
        scale: Factor on the products, a float32 value.
        softcap: Logits x become softcap tanh(x / softcap) (Gemma 2); None: they stay.
        project: Columns of its matrix, to which the matrix "head_project" takes the stream; None: those of the stream.
    """

    tied: bool
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    project: int | None = None

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")
        require(self.softcap is None or 0 < self.softcap < math.inf, f"softcap must be above 0, got {self.softcap}")
        if self.project is not None:
            require_sizes(self, "project")


@dataclass(frozen=True)
class Transformer:
    """A decoder, independent of the checkpoint that it came from.

    Attributes:
        hidden: Width of the residual stream.
        vocab: Rows of the embedding and of the head.
        context: Largest number of tokens that a sequence may hold.
        embedding: The way in.
        stack: The blocks.
        head: The way out.
    """

    hidden: int
    vocab: int
    context: int
    embedding: Embedding
    stack: Stack
    head: Head

    def __post_init__(self) -> None:
        require_sizes(self, "hidden", "vocab", "context")
        fair = not self.head.tied or self.head.project == self.embedding.project
        require(fair, f"a tied head has the width of the embedding, {self.embedding.project}, not {self.head.project}")
        if learned := self.embedding.positions:
            most = learned.count - learned.offset
            require(self.context <= most, f"context {self.context} is beyond the {most} positions that were learned")

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return len(self.stack.layers)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.head.tied

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The block of each layer."""
        return tuple(self.stack)

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """The matrices of the blocks by canonical name, "layers.3.q", in the order of the computation.

        Those of `exact` are not among them.
        """
        return {
            f"layers.{layer}.{name}": linear
            for layer, block in enumerate(self.stack)
            for branch in block.branches
            for name, linear in branch.mixer.linears(self.hidden).items()
        }

    @cached_property
    def exact(self) -> dict[str, Linear]:
        """Small matrices of the blocks, "layers.3.router", on which all else depends: neither pruned nor rounded."""
        return {
            f"layers.{layer}.{name}": linear
            for layer, block in enumerate(self.stack)
            for branch in block.branches
            for name, linear in branch.mixer.exact(self.hidden).items()
        }

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights, [outputs, inputs], and vectors by canonical name.

        Those are "embed", "positions", "layers.3.q", "layers.3.q.bias", "layers.3.experts.17.up", "layers.3.attn_norm",
        "norm", where it is not tied "head", and others that parts say.
        """
        way_in, way_out = self.embedding, self.head
        found: dict[str, tuple[int, ...]] = {"embed": (self.vocab, way_in.project or self.hidden)}
        if way_in.project:
            found["embed_project"] = (self.hidden, way_in.project)
        if way_in.positions:
            found["positions"] = (way_in.positions.count, self.hidden)
        if way_in.norm:
            found |= _sized(way_in.norm.vectors("embed_norm", self.hidden))
        for layer, block in enumerate(self.stack):
            for branch in block.branches:
                mixer = branch.mixer
                for name, linear in (mixer.exact(self.hidden) | mixer.linears(self.hidden)).items():
                    found[f"layers.{layer}.{name}"] = (linear.rows, linear.cols)
                    if linear.bias:
                        found[f"layers.{layer}.{name}.bias"] = (linear.rows,)
            found |= _sized({f"layers.{layer}.{name}": size for name, size in block.vectors(self.hidden).items()})
        if self.stack.norm:
            found |= _sized(self.stack.norm.vectors("norm", self.hidden))
        if way_out.project:
            found["head_project"] = (way_out.project, self.hidden)
        if not way_out.tied:
            found["head"] = (self.vocab, way_out.project or self.hidden)
        return found | ({"head.bias": (self.vocab,)} if way_out.bias else {})

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """Those of `tensors` that are matrices."""
        return {name: (shape[0], shape[1]) for name, shape in self.tensors.items() if len(shape) == 2}

    @property
    def vectors(self) -> dict[str, int]:
        """The lengths of those of `tensors` that are vectors."""
        return {name: shape[0] for name, shape in self.tensors.items() if len(shape) == 1}

    def deeper(self, layers: int) -> Transformer:
        """Returns the same with so many blocks like the first."""
        return replace(self, stack=replace(self.stack, layers=(self.stack.layers[0],) * layers))

    def to_dict(self) -> dict[str, Any]:
        """Returns the description as JSON-ready values."""
        return cast("dict[str, Any]", plain(self))

    @classmethod
    def from_dict(cls, values: Any) -> Transformer:
        """Builds a description from what `to_dict` returns.

        Raises:
            GossamerError: a field is unknown, missing, of the wrong type or out of range; the line names it.
        """
        return cast("Transformer", parse(cls, values, "transformer"))


def _sized(vectors: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: (size,) for name, size in vectors.items()}
