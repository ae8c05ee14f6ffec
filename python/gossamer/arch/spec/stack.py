"""Branches, the blocks that they make, and the stack of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .attention import Attention
from .mlp import Mlp
from .norm import Norm
from .parse import require

MOST_LAYERS = 4096


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
