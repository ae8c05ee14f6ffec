"""What every mixer answers, and the groups that its linears come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .linear import Linear


@dataclass(frozen=True)
class Group:
    """Linears of a block that read the same inputs.

    Attributes:
        linears: Their short names.
        joins: Whether their output is added to the stream.
        column: Where their inputs are of some tokens alone, and their outputs are weighed: which column of the mixer's
            `Mixer.routed` says of which tokens, and with what weights.
        memory: Whether they read the states of the encoder, a token of the memory each.
    """

    linears: tuple[str, ...]
    joins: bool = False
    column: int | None = None
    memory: bool = False


class Mixer:
    """What a branch computes of the rows that it reads.

    Attributes:
        part: Its tag in stored descriptions.
        routed: What to capture where tokens are routed: rows of weights, [tokens, columns], negative where a
            token does not come to what the column is for; empty where all tokens go the same way.
    """

    part: ClassVar[str]
    routed: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """Before "_norm" in the name of the norm before it; a block has no two mixers of one name."""
        raise NotImplementedError

    def linears(self, hidden: int) -> dict[str, Linear]:
        """Returns its matrices by their short names, in the order of the computation."""
        raise NotImplementedError

    def exact(self, hidden: int) -> dict[str, Linear]:  # noqa: ARG002 - most have none
        """Returns small matrices on which all else depends: they are neither pruned nor rounded."""
        return {}

    @property
    def groups(self) -> tuple[Group, ...]:
        """Its linears by what they read, in the order of the computation; the last one joins the stream."""
        raise NotImplementedError

    def vectors(self) -> dict[str, int]:
        """Returns the lengths of the vectors that it has beside biases."""
        return {}
