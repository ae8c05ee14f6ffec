"""Encoders as torch modules: inputs whose tokens see one another, and whose states a decoder reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..arch.spec import Linear, Transformer
from .block import Stream, Trunk, relative_of
from .build import Build
from .check import expect
from .linears import Linears, Projection
from .memory import Both, Step
from .ops import Ops

_TAPS = 3  # frames that a convolution sees


class Encoder(Trunk):
    """An encoder of tokens, or of frames of sound.

    Attributes:
        embed: The embedding, the decoder's where that is shared; None where frames come in.
    """

    def __init__(self, config: Transformer, linears: Linears, ops: Ops, outer: nn.Embedding) -> None:
        """Builds the parts of a description.

        Args:
            config: The description.
            linears: What makes projections.
            ops: What is between them.
            outer: The decoder's embedding.

        Raises:
            GossamerError: it has something that there is not; the line names it.
        """
        expect(config, "hidden", "vocab", "context", "embedding", "stack", "head")
        way_in = config.embedding
        expect(way_in, "positions", "scale", "project", "norm", "shared", "mel")
        build = Build(config.hidden, linears, ops)
        relative = relative_of(config, build)
        convolutions: dict[tuple[str, ...], Projection] = {}
        if way_in.mel is not None:
            expect(way_in.mel, "bins")
            for name in ("conv1", "conv2"):
                convolutions[name,] = linears.group({name: Linear(*config.weights[name], True)})
        own = not way_in.shared and way_in.mel is None
        table = linears.table("embed", config.vocab, way_in.project or config.hidden) if own else None
        super().__init__(config, table, convolutions, relative, build)
        if table is None:
            # No module of this one: the matrix, if any, has the decoder's name.
            object.__setattr__(self, "embed", outer if way_in.shared else None)

    def begun(self, inputs: Tensor, real: Tensor) -> tuple[Tensor, Step]:
        """Returns the states [batch, n, hidden] that the first block begins with, and the step of all blocks.

        Args:
            inputs: Token ids [batch, n], or frames [batch, 2 n, bins].
            real: False at padding, [batch, n].
        """
        positions = torch.arange(real.shape[1], device=real.device)
        rows = self._heard(inputs) if self.embed is None else self.embed(inputs)
        return self.begin(rows, positions), Step(Both(real), positions, self.angles(positions))

    def _heard(self, frames: Tensor) -> Tensor:
        """States of frames: each convolution reads three rows, the second every other time."""
        found = frames
        for name, stride in (("conv1", 1), ("conv2", 2)):
            around = functional.pad(found, (0, 0, 1, 1)).unfold(1, _TAPS, stride)  # [batch, n, channels, 3]
            (found,) = self.ends[name,](around.flatten(-2))
            found = functional.gelu(found)
        return found

    def normed(self, states: Tensor) -> Tensor:
        """Returns states behind the last block as a decoder reads them."""
        return Stream(states).read(self.norm)
