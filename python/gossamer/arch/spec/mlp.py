"""MLPs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from .linear import Linear, check_biases
from .mixer import Group, Mixer
from .parse import require, require_sizes

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


@dataclass(frozen=True)
class Mlp(Mixer):
    """Two linears with a nonlinearity between them, or three: down(activation(gate(x)) * up(x)) (Shazeer 2020).

    Attributes:
        width: Outputs of `up`.
        activation: "silu": x / (1 + exp(-x)); "gelu": x times the normal distribution's share below x (Hendrycks and
            Gimpel 2016); "gelu_tanh": its approximation by a tanh; "relu": max(x, 0); "relu2": its square (So et al.
            2021).
        gated: Whether there is a gate.
        biases: Linears that have a bias.
        limit: The gate is at most this before the activation, and `up` at most this and at least -this; None: as it is.
        alpha: Factor on the exponent of "silu": x / (1 + exp(-alpha x)).
        shift: Added to `up`.
    """

    part: ClassVar[str] = "mlp"
    width: int
    activation: Activation
    gated: bool = True
    biases: tuple[str, ...] = ()
    limit: float | None = None
    alpha: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        require_sizes(self, "width")
        check_biases(self, (*self._inputs, "down"))
        require(self.limit is None or 0 < self.limit < math.inf, f"limit must be above 0, got {self.limit}")
        require(0 < self.alpha < math.inf, f"alpha must be above 0, got {self.alpha}")
        require(math.isfinite(self.shift), f"shift must be finite, got {self.shift}")
        fair = self.plain or (self.gated and self.activation == "silu")
        require(fair, "limit, alpha and shift are for a gate with silu")

    @property
    def name(self) -> str:
        """See `Mixer`."""
        return "mlp"

    @property
    def plain(self) -> bool:
        """Whether gate and up are taken as they are, and the activation as well."""
        return self.limit is None and self.alpha == 1 and self.shift == 0

    @property
    def _inputs(self) -> tuple[str, ...]:
        return ("gate", "up") if self.gated else ("up",)

    def linears(self, hidden: int) -> dict[str, Linear]:
        """See `Mixer`."""
        shapes = {**dict.fromkeys(self._inputs, (self.width, hidden)), "down": (hidden, self.width)}
        return {name: Linear(*shape, name in self.biases) for name, shape in shapes.items()}

    @property
    def groups(self) -> tuple[Group, ...]:
        """See `Mixer`."""
        return Group(self._inputs), Group(("down",), joins=True)
