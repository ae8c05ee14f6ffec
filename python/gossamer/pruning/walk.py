"""The way of calibration texts through a model, block after block: an encoder's first, then those that read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arch.sources import ENCODER
from ..arch.spec import Block, Transformer
from ..engine import Blocks
from ..errors import GossamerError
from .linalg import Matrix

# Tokens in one native call: enough to keep the cores busy, few enough that a block's captured inputs stay small.
_CHUNK_TOKENS = 4096


@dataclass(frozen=True)
class Texts:
    """Texts of one length, each a sequence of its own.

    Attributes:
        tokens: [texts, length].
        reads: What each reads by way of an encoder, tokens [texts, n] or frames [texts, frames, bins]; None: nothing.
    """

    tokens: NDArray[np.int32]
    reads: NDArray[np.generic] | None = None

    def rows(self, part: slice, most: int | None = None) -> Texts:
        """Returns some of the texts, and the first `most` tokens of each."""
        return Texts(self.tokens[part, :most], None if self.reads is None else self.reads[part])

    @property
    def longest(self) -> int:
        """Tokens of a text, or of what it reads where those are more."""
        return max(len(side[0]) for side in (self.tokens, self.reads) if side is not None)

    def chunks(self) -> Iterator[Texts]:
        """Yields them in as many as are run at once."""
        count = max(1, _CHUNK_TOKENS // self.longest)
        for start in range(0, len(self.tokens), count):
            yield self.rows(slice(start, start + count))


def chunked(windows: NDArray[np.int32]) -> list[Texts]:
    """Returns windows [windows, length] of text in as many as are run at once."""
    return list(Texts(windows).chunks())


@dataclass(frozen=True)
class Place:
    """A block on the way.

    Attributes:
        number: In the order of the way.
        layer: In its stack.
        prefix: Before the canonical names of what it has, "encoder.layers.3." or "layers.3.".
        block: Its description.
    """

    number: int
    layer: int
    prefix: str
    block: Block

    @property
    def encodes(self) -> bool:
        """Whether it is of an encoder that a decoder reads."""
        return self.prefix.startswith(ENCODER)


def places(model: Transformer) -> list[Place]:
    """Returns the blocks of a model in the order of the way."""
    inner = model.encoder.blocks if model.encoder else ()
    found = [Place(layer, layer, f"{ENCODER}layers.{layer}.", block) for layer, block in enumerate(inner)]
    start = len(found)
    return found + [Place(start + at, at, f"layers.{at}.", block) for at, block in enumerate(model.blocks)]


class Walk:
    """The way through one engine.

    Attributes:
        places: The blocks.
        blocks: The engine's.
        turn: Number of the first block that reads an encoder, whose states `cross` makes; None where there is none.
    """

    def __init__(self, blocks: Blocks, model: Transformer) -> None:
        """Takes an engine and its description.

        Raises:
            GossamerError: the engine has no blocks of the encoder that the description has.
        """
        self.places = places(model)
        self.blocks = blocks
        self._encoder = blocks.encoder if model.encoder else None
        if (self._encoder is None) != (model.encoder is None):
            raise GossamerError("the engine has no blocks of an encoder that could be walked")
        self._frames = bool(model.encoder and model.encoder.embedding.mel)
        self.turn = model.encoder.layers if model.encoder else None

    def enter(self, texts: Texts) -> Matrix:
        """Returns the states [tokens, hidden] that the first block begins with."""
        if self._encoder is None:
            return self._embedded(texts)
        assert texts.reads is not None
        if self._frames:
            return np.concatenate([self._encoder.embed(frames) for frames in texts.reads])
        return self._encoder.embed(texts.reads.reshape(-1), texts.reads.shape[1])

    def cross(self, texts: Texts, states: Matrix) -> tuple[Matrix, Matrix]:
        """Returns the memory that states behind the encoder's last block are, and the states that read it at first."""
        assert self._encoder is not None
        return self._encoder.norm(states), self._embedded(texts)

    def _embedded(self, texts: Texts) -> Matrix:
        return self.blocks.embed(texts.tokens.reshape(-1), texts.tokens.shape[1])

    def forward(
        self, place: Place, texts: Texts, states: Matrix, memory: Matrix | None, names: Sequence[str] = ()
    ) -> tuple[Matrix, dict[str, Matrix]]:
        """Returns states behind a block, and the inputs of linears of the names."""
        if not place.encodes:
            return self.blocks.forward_block(place.layer, states, names, texts.tokens.shape[1], memory)
        assert self._encoder is not None
        return self._encoder.forward_block(place.layer, states, names, len(states) // len(texts.tokens))

    def inputs(
        self, place: Place, texts: Texts, states: Matrix, memory: Matrix | None, names: Sequence[str]
    ) -> dict[str, Matrix]:
        """Returns the inputs of linears of the names alone."""
        if not place.encodes:
            return self.blocks.block_inputs(place.layer, states, names, texts.tokens.shape[1], memory)
        assert self._encoder is not None
        return self._encoder.block_inputs(place.layer, states, names, len(states) // len(texts.tokens))
