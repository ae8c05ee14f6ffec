"""MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .linear import Linear, check_biases
from .parse import require_sizes


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
        check_biases(self, (*self.groups[0], "down"))

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
