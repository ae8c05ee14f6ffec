"""Pairs of what an encoder reads and what a decoder writes about it, to train on: a row each, several to a window."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import GossamerError
from ..generation.pairs import Pair, pairing
from ..progress import Progress
from .batches import Batch, Tokens
from .task_data import Passes, TaskFiles, validation_plan

if TYPE_CHECKING:
    from ..arch.spec import Transformer
    from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PairData:
    """Windows of pairs; see `Source`.

    Attributes:
        samples: To train on.
        held_out: To validate on.
        length: Tokens a window: of texts as many go into one as have these together, on the side where they are longer;
            of sound one does.
        seed: Of the order, which is another one for every pass.
    """

    samples: Sequence[Pair]
    held_out: Sequence[Pair]
    length: int
    seed: int
    _passes: Passes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Sets up the order."""
        object.__setattr__(self, "_passes", Passes(self._sizes(self.samples), self.length, self.seed))

    @cached_property
    def train(self) -> Tokens:
        """See `Source`; what the decoder gets."""
        return np.concatenate([pair.inputs for pair in self.samples])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where the tokens of each pair begin in `train`."""
        return np.cumsum([0, *(len(pair.inputs) for pair in self.samples[:-1])])

    @property
    def windows(self) -> int:
        """See `Source`; the first pass is counted."""
        return len(self._passes.plan(0))

    def batch(self, first: int, count: int) -> Batch:
        """See `Source`."""
        return self._batch(self.samples, self._passes.windows(first, count), again=True)

    def validation_batches(self, most: int, size: int) -> Iterator[Batch]:
        """See `Source`."""
        for part in validation_plan(self._sizes(self.held_out), self.length, most, size):
            yield self._batch(self.held_out, part, again=False)

    def digest(self) -> int:
        """See `Source`."""
        digest = 0
        for pair in (*self.samples, *self.held_out):
            source = str(pair.source).encode() if isinstance(pair.source, Path) else pair.source.tobytes()
            digest = zlib.crc32(
                source, zlib.crc32(np.array([*pair.begins, -1, *pair.target], np.int32).tobytes(), digest)
            )
        return digest

    def _sizes(self, pairs: Sequence[Pair]) -> NDArray[np.int64]:
        return np.array([self.length if isinstance(pair.source, Path) else _size(pair) for pair in pairs], np.int64)

    def _batch(self, side: Sequence[Pair], plan: list[list[int]], *, again: bool) -> Batch:
        numbers = [number for inside in plan for number in inside]
        pairs = [side[number] for number in numbers]
        tokens, real = _padded([pair.inputs for pair in pairs])
        targets, places = np.full(tokens.shape, -1, np.int64), np.full(tokens.shape, -1, np.int64)
        for row, (number, pair) in enumerate(zip(numbers, pairs, strict=True)):
            begin, end = len(pair.begins) - 1, len(pair.inputs)
            targets[row, begin:end] = pair.target
            if again:
                places[row, :end] = self._starts[number] + np.arange(end)
        reads, heard = _padded([pair.read() for pair in pairs])
        windows = np.repeat(np.arange(len(plan)), [len(inside) for inside in plan])
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(real),
            torch.from_numpy(targets >= 0),
            torch.from_numpy(targets),
            torch.from_numpy(places),
            reads=torch.from_numpy(reads),
            # Two frames are a state.
            heard=torch.from_numpy(heard if reads.ndim == 2 else heard[:, ::2].copy()),
            windows=torch.from_numpy(windows),
        )


def _size(pair: Pair) -> int:
    return max(len(pair.inputs), len(pair.read()))


def _padded(rows: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Rows beside each other, and False at padding; tokens as int64."""
    most = max(map(len, rows))
    kind = np.int64 if rows[0].ndim == 1 else rows[0].dtype
    found, real = np.zeros((len(rows), most, *rows[0].shape[1:]), kind), np.zeros((len(rows), most), np.bool_)
    for at, row in enumerate(rows):
        found[at, : len(row)], real[at, : len(row)] = row, True
    return found, real


def prepare_pairs(
    files: TaskFiles,
    tokenizer: Tokenizer,
    model: Transformer,
    *,
    length: int,
    default: int,
    seed: int,
    progress: Progress,
) -> PairData:
    """Reads a task's samples as pairs.

    Args:
        files: Where they lie.
        tokenizer: Gives the tokens.
        model: The description: a decoder that reads an encoder.
        length: Tokens a window; 0 takes `default`, or more where a pair is longer.
        default: As said.
        seed: Of the order.
        progress: Called with (samples done, samples, what).

    Raises:
        GossamerError: a file is not usable, or a sample does not fit the model; the line names file and line.
    """
    pair = pairing(tokenizer, model)
    sides = files.split()
    total, sound = sum(map(len, sides)), model.encoder is not None and model.encoder.embedding.mel is not None
    found: list[list[Pair]] = []
    for side in sides:
        pairs = []
        for sample in side:
            pairs.append(pair(sample))
            if (done := sum(map(len, found)) + len(pairs)) % 1000 == 0:
                progress(done, total, "reading the task")
        found.append(pairs)
    longest = 1 if sound else max(_size(one) for side in found for one in side)
    if length and longest > length:
        long = next(one for side in found for one in side if _size(one) > length)
        raise GossamerError(f"{long.where}: the pair has {_size(long)} tokens, and a window holds {length}")
    return PairData(found[0], found[1], length or max(default, longest), seed)
