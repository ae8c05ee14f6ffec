"""Branches, the blocks that they make, and the stack of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .attention import Attention
from .experts import Experts
from .mixer import Group
from .mlp import Mlp
from .norm import Norm
from .parse import require
from .positions import RelativeBias

MOST_LAYERS = 4096


@dataclass(frozen=True)
class Branch:
    """What reads the stream and adds to it.

    Attributes:
        mixer: What is computed.
        before: Norm of what it reads.
        behind: Norm of what it gives, before that is added (Gemma 2, OLMo 2).
        after_sum: Norm of the stream once it is added, which the stream is from then on (BERT).
        scale: Factor on what is added, a float32 value.
    """

    mixer: Attention | Mlp | Experts
    before: Norm | None
    behind: Norm | None = None
    after_sum: Norm | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")

    @property
    def norms(self) -> dict[str, Norm]:
        """Its norms by their short names."""
        own = {"norm": self.before, "behind": self.behind, "after_sum": self.after_sum}
        return {f"{self.mixer.name}_{name}": norm for name, norm in own.items() if norm}

    def vectors(self, hidden: int) -> dict[str, int]:
        """Returns the lengths of its vectors beside biases, by their short names."""
        found: dict[str, int] = {}
        for name, norm in self.norms.items():
            found |= norm.vectors(name, hidden)
        return found | self.mixer.vectors()


@dataclass(frozen=True)
class Block:
    """Branches, one behind the other.

    Attributes:
        branches: In the order of the computation; no two of one name.
        parallel: Whether all of them read the stream as it came into the block (GPT-J, GPT-NeoX).
        norm: Of what all of them read, where they are parallel and share one (GPT-J, Falcon).
        scalar: Whether the stream is multiplied by a number behind the block, the vector "scalar" of one element
            (Gemma 4).
    """

    branches: tuple[Branch, ...]
    parallel: bool = False
    norm: Norm | None = None
    scalar: bool = False

    def __post_init__(self) -> None:
        names = [branch.mixer.name for branch in self.branches]
        require(0 < len(names) == len(set(names)), f"branches must be different ones, got {', '.join(names) or 'none'}")
        shared = self.parallel and not any(branch.before for branch in self.branches)
        require(self.norm is None or shared, "norm is for parallel branches that have none before them")
        in_turn = not (self.parallel and any(branch.after_sum for branch in self.branches))
        require(in_turn, "after_sum is for branches in turn, not for parallel ones")

    def vectors(self, hidden: int) -> dict[str, int]:
        """Returns the lengths of its vectors beside biases, by their short names."""
        found = self.norm.vectors("norm", hidden) if self.norm else {}
        for branch in self.branches:
            found |= branch.vectors(hidden)
        return found | {"scalar": 1} if self.scalar else found

    @property
    def causal(self) -> bool:
        """Whether no token sees those behind it."""
        mixers = (branch.mixer for branch in self.branches)
        return all(one.causal for one in mixers if isinstance(one, Attention) and one.reads == "self")

    @property
    def groups(self) -> tuple[Group, ...]:
        """Its linears by what they read, in the order of the computation."""
        return tuple(group for branch in self.branches for group in branch.mixer.groups)


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
        shared = {(one.heads, one.positions) for one in self.attentions if isinstance(one.positions, RelativeBias)}
        require(len(shared) <= 1, "attentions must have the relative bias of the stack, and so many heads")

    @property
    def attentions(self) -> Iterator[Attention]:
        """Those of the different blocks."""
        branches = (branch for block in self.kinds for branch in block.branches)
        return (branch.mixer for branch in branches if isinstance(branch.mixer, Attention))

    @property
    def relative_bias(self) -> tuple[int, int] | None:
        """Shape of the matrix "relative_bias", [heads, buckets]; None where there is none."""
        for one in self.attentions:
            if isinstance(one.positions, RelativeBias):
                return one.heads, one.positions.buckets
        return None

    @property
    def reads_memory(self) -> bool:
        """Whether a block reads the states of an encoder."""
        return any(one.reads == "memory" for one in self.attentions)

    def __iter__(self) -> Iterator[Block]:
        return (self.kinds[kind] for kind in self.layers)
