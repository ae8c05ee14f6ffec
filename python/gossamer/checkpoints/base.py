"""What every checkpoint answers, whatever it is stored as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..arch.sources import Source
from ..errors import GossamerError
from ..text.pooling import Pooling
from ..text.tokenizer import Tokenizer
from .codes import Codes
from .lora import LowRank


class Checkpoint(ABC):
    """An open checkpoint: its config, and tensors that are read when asked for, under Hugging Face names.

    Attributes:
        path: The folder or file.
        config: Content of config.json, or its like built from the keys of a GGUF file.
        low_rank: Low-rank branches by the name of the weight that each goes with.
        parallel: Names of the tensors that are added to a linear's weight, by the name of that.
        notes: Where its files contradict each other, and what was made of it.
    """

    path: Path
    config: dict[str, Any]
    low_rank: Mapping[str, LowRank] = {}
    parallel: Mapping[str, list[str]] = {}
    notes: tuple[str, ...] = ()

    @abstractmethod
    def names(self) -> list[str]:
        """Returns the names of all tensors, in file order."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape; weights are [outputs, inputs]."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Returns a tensor's stored type: "f32", "f16", "bf16", or another type's name as the file calls it.

        Whole numbers with scales are "int8" or "int4"; what `codes` reads may need another than their file had.
        """

    @abstractmethod
    def tensor(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor, dequantized.

        Raises:
            GossamerError: there is no such tensor, or its type is not supported.
        """

    def codes(self, name: str) -> Codes | None:  # noqa: ARG002
        """Reads a tensor as whole numbers and scales, where it is stored so and packed weights can hold it so.

        Raises:
            GossamerError: there is no such tensor, or its parts contradict each other.
        """
        return None

    def form(self, name: str) -> str | None:  # noqa: ARG002
        """Returns what a tensor's values are, where they are made of codes and scales; None for floats as they are."""
        return None

    def has_rows(self, name: str) -> bool:  # noqa: ARG002
        """Whether `rows` reads a matrix piece by piece, and no more than is asked for."""
        return False

    def rows(self, name: str, rows: slice) -> NDArray[np.float32]:
        """Reads some rows of a tensor, as `tensor` reads all."""
        return self.tensor(name)[rows]

    def finite(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor as `tensor` does.

        Raises:
            GossamerError: as there, or a value is NaN or infinite.
        """
        values = self.tensor(name)
        self._refuse_infinite(name, values)
        return values

    def _refuse_infinite(self, name: str, values: NDArray[np.float32]) -> None:
        """Raises `GossamerError` where values of a tensor are NaN or infinite."""
        if not np.isfinite(values).all():
            raise GossamerError(f"{self.path}: tensor {name} has NaN or infinite values")

    def add_zeros(self, name: str, length: int) -> None:
        """Adds a vector of zeros, as if the file had it."""
        raise NotImplementedError

    def same(self, first: str, second: str) -> bool:
        """Returns whether two tensors have the same values."""
        return np.array_equal(self.tensor(first), self.tensor(second))

    def sources(self, **changes: Any) -> arch.Sources:
        """Returns where each canonical tensor lies.

        Models that were saved without a head lack the prefix that their family's names have.

        Args:
            **changes: Keys of the config to take otherwise.

        Raises:
            GossamerError: as `gossamer.arch.Family.sources`.
        """
        config = {**self.config, **changes}
        family = arch.family(config)
        found = family.sources(config)
        if any(name.startswith(family.PREFIX) for name in self.names()):
            return found
        return {
            name: replace(source, tensor=source.tensor.removeprefix(family.PREFIX)) for name, source in found.items()
        }

    def read(self, source: Source, *, finite: bool = False) -> NDArray[np.float32]:
        """Reads a canonical tensor.

        Args:
            source: Where it lies.
            finite: Whether NaN and infinity are refused.

        Raises:
            GossamerError: there is no such tensor, or it has a value that is refused.
        """
        if source.index is None or not self.has_rows(source.tensor):
            return source.read(self.finite(source.tensor) if finite else self.tensor(source.tensor))
        # One of a stack, which may be larger than memory is.
        one = self.rows(source.tensor, slice(source.index, source.index + 1))
        if finite:
            self._refuse_infinite(source.tensor, one)
        return replace(source, shape=(1, *source.shape[1:]), index=0).read(one)

    def read_codes(self, source: Source) -> Codes | None:
        """Reads a canonical matrix as whole numbers and scales, where it is stored so; otherwise None.

        Args:
            source: Where it lies.

        Raises:
            GossamerError: there is no such tensor, or its parts contradict each other.
        """
        codes = self.codes(source.tensor)
        return None if codes is None else codes.through(source)

    def pooling(self) -> Pooling | None:
        """Returns how vectors of texts are made of an encoder's states; None where that is not said.

        Raises:
            GossamerError: what is said is not supported.
        """
        return None

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Opens the tokenizer.

        Raises:
            GossamerError: it is missing, not valid, or not supported.
        """

    @abstractmethod
    def copy_companions(self, dst: Path) -> None:
        """Writes what belongs to the model beside config and weights: tokenizer files, generation_config.json."""


def refuse_branches(checkpoint: Checkpoint, what: str) -> None:
    """Raises `GossamerError` where a checkpoint has low-rank or parallel branches, for what would lose them."""
    for kind, found in (("low-rank", checkpoint.low_rank), ("parallel", checkpoint.parallel)):
        if found:
            raise GossamerError(f"{checkpoint.path}: a model with {kind} branches cannot be {what}")
