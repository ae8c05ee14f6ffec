"""A transformer described by its parts: a residual stream, and branches that read it and add to it.

Flags multiply; parts add. What a model needs follows from the description and is written nowhere else: the names and
shapes of its weights, which of them read the same inputs, which outputs join the stream. It is data: packed folders
hold it, the native engine is built from it (`csrc/engine/spec.h` mirrors it field for field), and what it does not
know is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, cast

import numpy as np

from .parse import LARGEST, parse, plain, require, require_sizes

MOST_LAYERS = 4096


@dataclass(frozen=True)
class Norm:
    """A norm over the width of the stream.

    Attributes:
        kind: "rms": x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019); "layer": the same of x - mean(x) (Ba et al.
            2016).
        eps: Added to the mean square.
        bias: Whether a bias is added behind the weight; "layer" alone has one.
    """

    kind: Literal["rms", "layer"]
    eps: float
    bias: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.eps < math.inf, f"eps must be finite and not negative, got {self.eps}")
        require(self.kind == "layer" or not self.bias, f"a norm of kind {self.kind!r} has no bias")

    def vectors(self, name: str, width: int) -> dict[str, int]:
        """Returns the lengths of what a norm of some name has."""
        return {name: width, f"{name}.bias": width} if self.bias else {name: width}


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
class Linear:
    """A matrix of a mixer.

    Attributes:
        rows: Outputs.
        cols: Inputs.
        bias: Whether a bias is added.
    """

    rows: int
    cols: int
    bias: bool


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
        _check_biases(self, ("q", "k", "v", "o"))

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


@dataclass(frozen=True)
class Mlp:
    """Two linears with a nonlinearity between them, or three: down(activation(gate(x)) * up(x)) (Shazeer 2020).

    Attributes:
        width: Outputs of `up`.
        activation: "silu": x / (1 + exp(-x)); "gelu": x times the normal distribution's share below x (Hendrycks and
            Gimpel 2016); "gelu_tanh": its approximation by a tanh.
        gated: Whether there is a gate.
        biases: Linears that have a bias.
    """

    part: ClassVar[str] = "mlp"
    name: ClassVar[str] = "mlp"
    width: int
    activation: Literal["silu", "gelu", "gelu_tanh"]
    gated: bool = True
    biases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_sizes(self, "width")
        _check_biases(self, (*self.groups[0], "down"))

    def linears(self, hidden: int) -> dict[str, Linear]:
        """Returns its matrices by their short names, in the order of the computation."""
        shapes = {**dict.fromkeys(self.groups[0], (self.width, hidden)), "down": (hidden, self.width)}
        return {name: Linear(*shape, name in self.biases) for name, shape in shapes.items()}

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Linears that read the same inputs; the output of the last group joins the stream."""
        return (("gate", "up") if self.gated else ("up",), ("down",))

    def vectors(self) -> dict[str, int]:
        """Returns the lengths of the vectors that it has beside biases."""
        return {}


def _check_biases(mixer: Attention | Mlp, known: tuple[str, ...]) -> None:
    require(
        all(name in known for name in mixer.biases) and len(set(mixer.biases)) == len(mixer.biases),
        f"biases must be some of {', '.join(known)}, got {', '.join(map(str, mixer.biases))!r:.80}",
    )


@dataclass(frozen=True)
class Branch:
    """What reads the stream and adds to it.

    Attributes:
        mixer: What is computed.
        before: Norm of what it reads.
    """

    mixer: Attention | Mlp
    before: Norm | None

    def vectors(self, hidden: int) -> dict[str, int]:
        """Returns the lengths of its vectors beside biases, by their short names."""
        return (self.before.vectors(f"{self.mixer.name}_norm", hidden) if self.before else {}) | self.mixer.vectors()


@dataclass(frozen=True)
class Group:
    """Linears of a block that read the same inputs.

    Attributes:
        linears: Their short names.
        joins: Whether their output is added to the stream.
    """

    linears: tuple[str, ...]
    joins: bool


@dataclass(frozen=True)
class Block:
    """Branches, one behind the other.

    Attributes:
        branches: In the order of the computation; no two of one name.
        parallel: Whether all of them read the stream as it came into the block (GPT-J, GPT-NeoX).
    """

    branches: tuple[Branch, ...]
    parallel: bool = False

    def __post_init__(self) -> None:
        names = [branch.mixer.name for branch in self.branches]
        require(0 < len(names) == len(set(names)), f"branches must be different ones, got {', '.join(names) or 'none'}")

    @property
    def groups(self) -> tuple[Group, ...]:
        """Its linears by what they read, in the order of the computation."""
        return tuple(
            Group(linears, linears == branch.mixer.groups[-1])
            for branch in self.branches
            for linears in branch.mixer.groups
        )


@dataclass(frozen=True)
class Stack:
    """Blocks, one behind the other.

    Attributes:
        kinds: The different blocks.
        layers: Which of them each layer is.
        norm: Behind the last block.
    """

    kinds: tuple[Block, ...]
    layers: tuple[int, ...]
    norm: Norm | None

    def __post_init__(self) -> None:
        count = len(self.layers)
        require(1 <= count <= MOST_LAYERS, f"layers must be from 1 to {MOST_LAYERS} numbers, got {count}")
        fair = all(0 <= kind < len(self.kinds) for kind in self.layers)
        require(fair, f"layers must be numbers of the {len(self.kinds)} kinds of blocks")

    def __iter__(self) -> Iterator[Block]:
        return (self.kinds[kind] for kind in self.layers)


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
