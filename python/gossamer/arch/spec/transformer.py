"""The whole: the way in, the stack, the way out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from .linear import Linear
from .parse import parse, plain, require, require_sizes
from .positions import Learned
from .stack import Block, Stack


@dataclass(frozen=True)
class Embedding:
    """How tokens become the stream: a row each of the matrix "embed".

    Attributes:
        positions: What is added by the position of a token.
    """

    positions: Learned | None = None


@dataclass(frozen=True)
class Head:
    """How the stream becomes logits.

    Attributes:
        tied: Whether its matrix is the embedding's.
    """

    tied: bool


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
        """The matrices of the blocks by canonical name, "layers.3.q", in the order of the computation."""
        return {
            f"layers.{layer}.{name}": linear
            for layer, block in enumerate(self.stack)
            for branch in block.branches
            for name, linear in branch.mixer.linears(self.hidden).items()
        }

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights, [outputs, inputs], and vectors by canonical name.

        Those are "embed", "positions", "layers.3.q", "layers.3.q.bias", "layers.3.attn_norm", "norm" and, where it is
        not tied, "head".
        """
        found: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.hidden)}
        if self.embedding.positions:
            found["positions"] = (self.embedding.positions.count, self.hidden)
        for layer, block in enumerate(self.stack):
            for branch in block.branches:
                for name, linear in branch.mixer.linears(self.hidden).items():
                    found[f"layers.{layer}.{name}"] = (linear.rows, linear.cols)
                    if linear.bias:
                        found[f"layers.{layer}.{name}.bias"] = (linear.rows,)
            for branch in block.branches:
                found |= {f"layers.{layer}.{name}": (size,) for name, size in branch.vectors(self.hidden).items()}
        if self.stack.norm:
            found |= {name: (size,) for name, size in self.stack.norm.vectors("norm", self.hidden).items()}
        return found if self.tied else found | {"head": (self.vocab, self.hidden)}

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
