"""What a network is built of, and the vectors that its parts have."""

from __future__ import annotations

from torch import Tensor, nn

from ..arch import spec
from .linears import Linears
from .ops import Ops, TorchOps
from .positions import Angles, Relative


class Build:
    """What a network is built of, and what its parts ask steps and memory for.

    Attributes:
        hidden: Width of the stream.
        linears: What makes projections.
        ops: What is between them.
        angles: Rotary positions, each kind once.
        slots: Key/value heads and widths of the attentions, in their order.
        relative: What attentions add by distance; None where the stack has no such matrix.
    """

    def __init__(self, hidden: int, linears: Linears, ops: Ops) -> None:
        """Begins with no positions and no slots."""
        self.hidden, self.linears, self.ops = hidden, linears, ops
        self.angles = Angles()
        self.slots: list[tuple[int, int]] = []
        self.relative: Relative | None = None


class Norm(nn.Module):
    """A norm over the stream's width, which takes up what waits to be added."""

    def __init__(self, described: spec.Norm, name: str, build: Build, width: int | None = None) -> None:
        """Takes its vectors from the linears.

        Args:
            described: The norm.
            name: Its canonical name.
            build: What of.
            width: What it is taken over where that is no row of the stream, which kernels of a GPU are for.
        """
        super().__init__()
        self._add_norm = build.ops.norm(described) if width is None else TorchOps().norm(described)
        self._vectors = []
        for vector, length in described.vectors(name, width or build.hidden).items():
            own = vector.removeprefix(name).removeprefix(".") or "weight"
            self.register_parameter(own, build.linears.vector(vector, length))
            self._vectors.append(own)

    def add(self, states: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns states + update [..., width], and that normed; the states may be written to."""
        return self._add_norm(states, update, *(getattr(self, name) for name in self._vectors))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [..., width] normed."""
        return self.add(x, None)[1]


class Vector(nn.Module):
    """A vector that is no norm's and no bias."""

    weight: nn.Parameter

    def __init__(self, name: str, width: int, build: Build) -> None:
        """Takes it from the linears; `name` is its canonical one."""
        super().__init__()
        self.weight = build.linears.vector(name, width)
