"""What a step of training sees: windows of tokens, which of them count, and what belongs together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .options import Parts

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Windows of tokens, each [windows, length].

    Attributes:
        tokens: Token ids.
        real: False at padding.
        asked: True where the loss looks at what is predicted.
        targets: The token that comes next; -1 where the loss does not count it.
        places: Where each token stands in the data's tokens; -1 where it stands in none that come again.
        first: Where in its window the sample begins that a token belongs to; None where a window is one text.
        reads: What an encoder reads for each row, tokens or frames [rows, n, ...]; None: nothing.
        heard: False at padding among the states of that, [rows, n].
        windows: Where several rows are a window: whose each is, rising, [rows].
    """

    tokens: Tensor
    real: Tensor
    asked: Tensor
    targets: Tensor
    places: Tensor
    first: Tensor | None = None
    reads: Tensor | None = None
    heard: Tensor | None = None
    windows: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Returns it on a device."""
        return self._each(lambda values: values.to(device))

    def split(self, size: int) -> Iterator[Batch]:
        """Yields it in parts of so many windows."""
        if self.windows is None:
            for start in range(0, len(self.tokens), size):
                yield self._each(partial(_rows, slice(start, start + size)))
            return
        for start in range(0, int(self.windows[-1]) + 1, size):
            inside = (self.windows >= start) & (self.windows < start + size)
            yield self._each(partial(_rows, inside))

    def shares(self, whole: Batch) -> Parts:
        """Returns the share of a batch that this part of it has in what each part of the loss is a mean over."""
        counts = [[int(kind.sum()) for kind in (one.targets >= 0, one.real, one.asked)] for one in (self, whole)]
        ce, squarehead, kl = (mine / max(every, 1) for mine, every in zip(*counts, strict=True))
        return Parts(ce, squarehead, kl)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {name: value for name, value in vars(self).items() if value is not None}
        return Batch(**{name: change(value) for name, value in values.items()})


def _rows(part: slice | Tensor, values: Tensor) -> Tensor:
    return values[part]


class Source(Protocol):
    """Data to train and to validate on.

    Attributes:
        train: All training tokens.
        length: Tokens a window.
    """

    @property
    def train(self) -> Tokens: ...  # noqa: D102 - the class has it

    @property
    def length(self) -> int: ...  # noqa: D102

    @property
    def windows(self) -> int:
        """Windows in one pass over the data."""

    def batch(self, first: int, count: int) -> Batch:
        """Returns windows `first` ... of the endless order that passes over the data again and again."""

    def validation_batches(self, most: int, size: int) -> Iterator[Batch]:
        """Yields validation windows, spread evenly over what there is.

        Args:
            most: Windows at most.
            size: Windows in one batch.
        """

    def digest(self) -> int:
        """Returns what tells other data from these."""


def text_batch(rows: Sequence[tuple[Tokens, int]], length: int) -> Batch:
    """Makes a batch of windows of text, where every token counts.

    Args:
        rows: Tokens of each window, and where the first stands in the data's; -1 for in none that come again.
        length: Tokens that shorter windows are padded to.
    """
    tokens, places = np.zeros((len(rows), length), np.int64), np.full((len(rows), length), -1, np.int64)
    real = np.zeros(tokens.shape, np.bool_)
    for row, (window, start) in enumerate(rows):
        tokens[row, : len(window)], real[row, : len(window)] = window, True
        if start >= 0:
            places[row, : len(window)] = np.arange(start, start + len(window))
    targets = np.full(tokens.shape, -1, np.int64)
    targets[:, :-1] = np.where(real[:, 1:], tokens[:, 1:], -1)
    there = torch.from_numpy(real)
    return Batch(torch.from_numpy(tokens), there, there, torch.from_numpy(targets), torch.from_numpy(places))
