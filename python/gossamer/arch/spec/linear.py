"""The matrices of mixers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .parse import require


@dataclass(frozen=True)
class Linear:
    """A matrix of a mixer.

    Attributes:
        rows: Outputs.
        cols: Inputs.
        bias: Whether a bias is added.
        share: The part of it that is read for a token: where it is one of several of which some are chosen.
    """

    rows: int
    cols: int
    bias: bool
    share: float = 1.0


def check_biases(mixer: Any, known: tuple[str, ...]) -> None:
    """Refuses biases of a mixer that are not of its linears, or named twice."""
    require(
        all(name in known for name in mixer.biases) and len(set(mixer.biases)) == len(mixer.biases),
        f"biases must be some of {', '.join(known)}, got {', '.join(map(str, mixer.biases))!r:.80}",
    )
