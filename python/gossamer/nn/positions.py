"""Positions of a network: what is added to rows of the embedding, and what attentions have.

The angles of rotary ones are computed once a step for all that share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..arch import spec
from .check import choose, expect
from .functions import rotary_angles
from .linears import Linears


class Rotary(nn.Module):
    """Rotary positions of one kind."""

    inv_freq: Tensor

    def __init__(self, described: spec.Rope) -> None:
        """Takes the frequencies of a description."""
        super().__init__()
        expect(described, "inv_freq", "scale", "interleaved")
        self._scale = described.scale
        # On the processor even where parameters are on the meta device: nothing fills it afterwards.
        frequencies = torch.tensor(described.inv_freq, dtype=torch.float32, device="cpu")
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines [..., n, rotary_dim / 2] for positions [..., n]."""
        return rotary_angles(positions, self.inv_freq, self._scale)


class Slopes(nn.Module):
    """What ALiBi takes off the scores of each head a position of distance."""

    slopes: Tensor

    def __init__(self, described: spec.Alibi) -> None:
        """Takes the slopes of a description."""
        super().__init__()
        expect(described, "slopes")
        self.register_buffer("slopes", torch.tensor(described.slopes, dtype=torch.float32, device="cpu"), False)


class Relative(nn.Module):
    """What attentions of a stack add to scores by distance."""

    weight: nn.Parameter
    back: Tensor
    ahead: Tensor

    def __init__(self, described: spec.RelativeBias, weight: nn.Parameter) -> None:
        """Takes a description and its matrix, [heads, buckets]."""
        super().__init__()
        expect(described, "buckets", "back", "ahead")
        self.weight = weight
        for name in ("back", "ahead"):
            buckets = torch.tensor(getattr(described, name) or described.back, dtype=torch.int64, device="cpu")
            self.register_buffer(name, buckets, persistent=False)

    def forward(self, count: int) -> Tensor:
        """Returns [heads, n, n] for the first n tokens."""
        positions = torch.arange(count, device=self.weight.device)
        distances = positions[:, None] - positions
        back = self.back[distances.clamp(min=0, max=len(self.back) - 1)]
        ahead = self.ahead[(-distances).clamp(min=0, max=len(self.ahead) - 1)]
        return self.weight[:, torch.where(distances < 0, ahead, back)]


class Learned(nn.Embedding):
    """Positions that were learned, a row each."""

    def __init__(self, described: spec.Learned, table: nn.Embedding) -> None:
        """Takes a description and its matrix."""
        expect(described, "count", "offset")
        super().__init__(described.count, table.embedding_dim, device="meta")
        self.weight = table.weight
        self._offset = described.offset

    def forward(self, positions: Tensor) -> Tensor:
        """Returns what is added at positions [..., n]: [..., n, hidden]."""
        return super().forward(positions + self._offset)


class Sines(nn.Module):
    """Sines of some frequencies and cosines behind them."""

    frequencies: Tensor

    def __init__(self, described: spec.Sinusoids) -> None:
        """Takes the frequencies of a description."""
        super().__init__()
        expect(described, "frequencies", "offset")
        frequencies = torch.tensor(described.frequencies, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", frequencies, persistent=False)
        self._offset = described.offset

    def forward(self, positions: Tensor) -> Tensor:
        """Returns what is added at positions [..., n]: [..., n, hidden]."""
        angles = (positions + self._offset).float()[..., None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


_ADDED: dict[str, Callable[[Any, int, Linears], nn.Module]] = {
    "learned": lambda own, hidden, linears: Learned(own, linears.table("positions", own.count, hidden)),
    "sinusoids": lambda own, _hidden, _linears: Sines(own),
}


def added(embedding: spec.Embedding, hidden: int, linears: Linears) -> nn.Module | None:
    """Returns what gives the rows [..., n, hidden] that are added at positions [..., n].

    Raises:
        GossamerError: they are of a kind that there is not.
    """
    if embedding.positions is None:
        return None
    return choose(_ADDED, embedding, "positions")(embedding.positions, hidden, linears)


_KINDS = {"rope": Rotary, "alibi": Slopes, "relative_bias": Relative}


class Angles(nn.Module):
    """All kinds of rotary positions of a network."""

    def __init__(self) -> None:
        """Begins with none."""
        super().__init__()
        self._described: list[spec.Rope] = []
        self._kinds = nn.ModuleList()

    def number(self, attention: spec.Attention) -> int | None:
        """Returns which kind the rotary positions of an attention are; None where it has none.

        Raises:
            GossamerError: they are of a kind that there is not.
        """
        positions = attention.positions
        if positions is None:
            return None
        choose(_KINDS, attention, "positions")
        if not isinstance(positions, spec.Rope):
            return None
        angles = replace(positions, interleaved=False)  # pairs turn alike wherever they lie
        if angles not in self._described:
            self._kinds.append(Rotary(angles))
            self._described.append(angles)
        return self._described.index(angles)

    def forward(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns cosines and sines [..., n, rotary_dim / 2] of each kind for positions [..., n]."""
        return [kind(positions) for kind in self._kinds]
