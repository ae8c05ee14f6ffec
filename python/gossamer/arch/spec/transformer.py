"""The whole: the way in, the stack, the way out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from ...errors import GossamerError
from .linear import Linear
from .norm import Norm
from .parse import parse, plain, require, require_sizes
from .positions import Learned, Sinusoids
from .stack import Block, Stack


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
        if isinstance(self.positions, Learned):
            found["positions"] = (self.positions.count, hidden)
        if self.types:
            found["types"] = (self.types, hidden)
        return found | _sized(self.norm.vectors("embed_norm", hidden) if self.norm else {})


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
        if isinstance(way_in.positions, Learned):
            most = way_in.positions.count - way_in.positions.offset
            require(self.context <= most, f"context {self.context} is beyond the {most} positions that were learned")
        if isinstance(way_in.positions, Sinusoids):
            require(2 * len(way_in.positions.frequencies) == self.hidden, f"frequencies must be {self.hidden // 2}")
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
            found |= _sized({f"layers.{layer}.{name}": size for name, size in block.vectors(self.hidden).items()})
        if self.stack.norm:
            found |= _sized(self.stack.norm.vectors("norm", self.hidden))
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


def _sized(vectors: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: (size,) for name, size in vectors.items()}
