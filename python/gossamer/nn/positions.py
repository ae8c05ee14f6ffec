"""Positions of a network's attentions: the angles of rotary ones, computed once a step for all that share them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..arch import spec
from .check import choose, expect
from .functions import rotary_angles


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

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines [..., n, rotary_dim / 2] for places [..., n]."""
        return rotary_angles(places, self.inv_freq, self._scale)


class Slopes(nn.Module):
    """What ALiBi takes off the scores of each head a position of distance."""

    slopes: Tensor

    def __init__(self, described: spec.Alibi) -> None:
        """Takes the slopes of a description."""
        super().__init__()
        expect(described, "slopes")
        self.register_buffer("slopes", torch.tensor(described.slopes, dtype=torch.float32, device="cpu"), False)


_KINDS = {"rope": Rotary, "alibi": Slopes}


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

    def forward(self, places: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns cosines and sines [..., n, rotary_dim / 2] of each kind for places [..., n]."""
        return [kind(places) for kind in self._kinds]
