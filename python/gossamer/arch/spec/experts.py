"""Mixtures of experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .linear import Linear
from .mixer import Group, Mixer
from .mlp import Mlp
from .parse import require

MOST_EXPERTS = 4096


@dataclass(frozen=True)
class Routing:
    """How a token's experts are chosen, by the logits that the router gives each, and what their outputs count.

    Attributes:
        softmax: What the weights are a softmax over: "all" experts, the likeliest of which are chosen, or the "chosen"
            ones, which are those of the largest logits. Of equal ones the first is chosen.
        normalized: Whether weights of a softmax over all are divided by the sum of the chosen ones.
        bias: Whether the router has a bias.
        scale: Factor on the weights.
    """

    softmax: Literal["all", "chosen"]
    normalized: bool = False
    bias: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, f"scale must be above 0, got {self.scale}")
        require(self.softmax == "all" or not self.normalized, "weights of the chosen ones are normalized already")


@dataclass(frozen=True)
class Experts(Mixer):
    """MLPs of which every token goes through a few, whose outputs are summed with weights (Shazeer et al. 2017).

    Attributes:
        count: How many there are.
        chosen: How many a token goes through.
        expert: What each is.
        routing: Which ones, and with what weights.
        shared: One that all tokens go through besides.
        shared_gate: Whether the output of that is multiplied by the sigmoid of a linear of one output.
    """

    part: ClassVar[str] = "experts"
    routed: ClassVar[str] = "routing"
    count: int
    chosen: int
    expert: Mlp
    routing: Routing
    shared: Mlp | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        fair = type(self.count) is int and 1 <= self.count <= MOST_EXPERTS
        require(fair, f"count must be from 1 to {MOST_EXPERTS}, got {self.count!r:.80}")
        fair = type(self.chosen) is int and 1 <= self.chosen <= self.count
        require(fair, f"chosen must be from 1 to count {self.count}, got {self.chosen!r:.80}")
        require(self.shared is not None or not self.shared_gate, "there is no shared expert that a gate could be of")

    @property
    def name(self) -> str:
        """See `Mixer`."""
        return "mlp"

    def _parts(self) -> list[tuple[str, Mlp]]:
        """Its MLPs, by what is before the names of their linears; their numbers are columns of the routing."""
        shared = [("shared.", self.shared)] if self.shared else []
        return [*((f"experts.{index}.", self.expert) for index in range(self.count)), *shared]

    def linears(self, hidden: int) -> dict[str, Linear]:
        """See `Mixer`: "experts.17.gate", …, "shared.down"."""
        shares = [self.chosen / self.count] * self.count + [1.0]
        return {
            prefix + name: replace(linear, share=share)
            for (prefix, mlp), share in zip(self._parts(), shares, strict=False)
            for name, linear in mlp.linears(hidden).items()
        }

    def exact(self, hidden: int) -> dict[str, Linear]:
        """See `Mixer`: "router", and "shared_gate" where there is one."""
        found = {"router": Linear(self.count, hidden, self.routing.bias)}
        return found | {"shared_gate": Linear(1, hidden, False)} if self.shared_gate else found

    @property
    def groups(self) -> tuple[Group, ...]:
        """See `Mixer`."""
        return tuple(
            Group(tuple(prefix + name for name in group.linears), group.joins, column)
            for column, (prefix, mlp) in enumerate(self._parts())
            for group in mlp.groups
        )
