"""The whole: the way in, the stack, the way out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from ...errors import GossamerError
from .embedding import Embedding, sized
from .linear import Linear
from .parse import parse, plain, require, require_sizes
from .stack import Block, Stack


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
    """A model, independent of the checkpoint that it came from: a decoder, an encoder, or both.

    Attributes:
        hidden: Width of the residual stream.
        vocab: Rows of the embedding and of the head.
        context: Largest number of tokens that a sequence may hold.
        embedding: The way in.
        stack: The blocks.
        head: The way out; None where its normed states are what is asked for, as of an encoder.
        encoder: Another that gives the states that this one reads as its memory; the names of its tensors have
            "encoder." before them.
    """

    hidden: int
    vocab: int
    context: int
    embedding: Embedding
    stack: Stack
    head: Head | None
    encoder: Transformer | None = None

    def __post_init__(self) -> None:
        require_sizes(self, "hidden", "vocab", "context")
        way_in, head = self.embedding, self.head
        fair = not head or not head.tied or head.project == way_in.project
        require(fair, f"a tied head has the width of the embedding, {way_in.project}, not {head and head.project}")
        if way_in.positions is not None:
            way_in.positions.check(self.hidden, self.context)
        require(head is None or way_in.mel is None, "mel is for an encoder")
        causal = all(block.causal for block in self.stack.kinds)
        require(head is None or causal, "a model with a head has causal attention")
        reads = self.stack.reads_memory
        require(reads == (self.encoder is not None), "there must be an encoder where a memory is read, and only there")
        if (encoder := self.encoder) is None:
            return
        require(encoder.head is None and encoder.encoder is None, "an encoder has neither a head nor an encoder")
        require(encoder.hidden == self.hidden, f"hidden of the encoder must be {self.hidden}, got {encoder.hidden}")
        same = encoder.vocab == self.vocab and encoder.embedding.project == way_in.project
        require(same or not encoder.embedding.shared, "an embedding that is shared must have one shape")
        require(not way_in.shared, "shared is for an encoder's embedding")

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return len(self.stack.layers)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.head is not None and self.head.tied

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The block of each layer."""
        return tuple(self.stack)

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """The matrices of the blocks by canonical name, "layers.3.q", in the order of the computation.

        Those of `exact` are not among them.
        """
        return self._encoders("linears") | {
            f"layers.{layer}.{name}": linear
            for layer, block in enumerate(self.stack)
            for branch in block.branches
            for name, linear in branch.mixer.linears(self.hidden).items()
        }

    @cached_property
    def exact(self) -> dict[str, Linear]:
        """Small matrices of the blocks, "layers.3.router", on which all else depends: neither pruned nor rounded."""
        return self._encoders("exact") | {
            f"layers.{layer}.{name}": linear
            for layer, block in enumerate(self.stack)
            for branch in block.branches
            for name, linear in branch.mixer.exact(self.hidden).items()
        }

    def share(self, name: str) -> float:
        """Returns the part of a matrix that a token reads: of experts as much as is chosen, of an encoder beside none.

        What stands beside a linear, "layers.3.q.low_rank_u", is read as that is; all else is whole.
        """
        if name.startswith("encoder."):
            return 0.0
        linear = self.linears.get(name) or self.linears.get(name.rpartition(".")[0])
        return linear.share if linear else 1.0

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights, [outputs, inputs], and vectors by canonical name.

        Those are "embed", "positions", "layers.3.q", "layers.3.q.bias", "layers.3.experts.17.up", "layers.3.attn_norm",
        "norm", where it is not tied "head", and others that parts say.
        """
        way_out = self.head
        found = self._encoders("tensors") | self.embedding.tensors(self.hidden, self.vocab)
        if shape := self.stack.relative_bias:
            found["relative_bias"] = shape
        for layer, block in enumerate(self.stack):
            for branch in block.branches:
                mixer = branch.mixer
                for name, linear in (mixer.exact(self.hidden) | mixer.linears(self.hidden)).items():
                    found[f"layers.{layer}.{name}"] = (linear.rows, linear.cols)
                    if linear.bias:
                        found[f"layers.{layer}.{name}.bias"] = (linear.rows,)
            found |= sized({f"layers.{layer}.{name}": size for name, size in block.vectors(self.hidden).items()})
        if self.stack.norm:
            found |= sized(self.stack.norm.vectors("norm", self.hidden))
        if way_out is None:
            return found
        if way_out.project:
            found["head_project"] = (way_out.project, self.hidden)
        if not way_out.tied:
            found["head"] = (self.vocab, way_out.project or self.hidden)
        return found | ({"head.bias": (self.vocab,)} if way_out.bias else {})

    def _encoders(self, what: str) -> dict[str, Any]:
        """What an encoder has of something, by full names."""
        if self.encoder is None:
            return {}
        return {f"encoder.{name}": one for name, one in getattr(self.encoder, what).items()}

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """Those of `tensors` that are matrices."""
        return {name: (shape[0], shape[1]) for name, shape in self.tensors.items() if len(shape) == 2}

    @cached_property
    def positions(self) -> int:
        """The weights of all matrices together, zeros included."""
        return sum(rows * cols for rows, cols in self.weights.values())

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
        try:
            return cast("Transformer", parse(cls, values, "transformer"))
        except RecursionError:
            raise GossamerError("transformer: is nested too deeply") from None
