"""A tensor of a checkpoint, as it is stored or as a codec makes it of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import GossamerError
from ...formats import INTEGER_TYPES
from ...safetensors_io import TensorInfo
from ..codes import Codes


class File(Protocol):
    """What a file of tensors answers."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def raw(self, name: str) -> NDArray[Any]:
        """Returns a tensor as it is stored; types that numpy lacks as their bits."""

    def float32(self, name: str) -> NDArray[np.float32]:
        """Returns a tensor of floats."""


class Tensor(ABC):
    """One tensor.

    Attributes:
        path: The file that it, or the first of its parts, lies in.
        name: What it is called there.
        shape: Of the dense tensor.
        dtype: Of the values: the file format's name of a stored type, or "int8" and "int4" for whole numbers.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @abstractmethod
    def raw(self) -> NDArray[Any]:
        """Returns the values as they are stored; types that numpy lacks as their bits.

        Raises:
            GossamerError: its parts contradict each other, or it is stored as no array of such values.
        """

    @abstractmethod
    def float32(self) -> NDArray[np.float32]:
        """Returns the dense tensor.

        Raises:
            GossamerError: its parts contradict each other.
        """

    def codes(self) -> Codes | None:
        """Returns it as whole numbers and scales, where it is stored so and packed weights can hold it so.

        Raises:
            GossamerError: its parts contradict each other.
        """
        return None

    @property
    def form(self) -> str | None:
        """What its values are, where they were made of codes: what a type of packed weights may not hold as it is."""
        return self.dtype if self.dtype in INTEGER_TYPES else None

    def bad(self, what: str) -> GossamerError:
        """Returns the error that says what is wrong with it, after its name."""
        return GossamerError(f"{self.path}: tensor {self.name} {what}")

    def expect(self, *dtypes: str, ndim: int | tuple[int, ...] | None = None) -> None:
        """Raises `GossamerError` where it has none of these types, or not so many dimensions."""
        if self.dtype not in dtypes:
            raise self.bad(f"is of type {self.dtype} instead of {' or '.join(dtypes)}")
        if ndim is not None and len(self.shape) not in (ndim if isinstance(ndim, tuple) else (ndim,)):
            raise self.bad(f"has shape {list(self.shape)}, which does not fit")


class StoredTensor(Tensor):
    """A tensor as it lies in a file."""

    def __init__(self, file: File, name: str) -> None:
        info = file.tensors[name]
        self.path, self.name, self.shape, self.dtype = file.path, name, info.shape, info.dtype
        self.file = file

    def raw(self) -> NDArray[Any]:  # noqa: D102 - as in the base class, as are those below
        return self.file.raw(self.name)

    def float32(self) -> NDArray[np.float32]:  # noqa: D102
        return self.file.float32(self.name)


class Zeros(Tensor):
    """A vector of zeros that nobody stored."""

    dtype = "F32"

    def __init__(self, path: Path, name: str, length: int) -> None:
        self.path, self.name, self.shape = path, name, (length,)

    def raw(self) -> NDArray[Any]:  # noqa: D102 - as in the base class, as is the one below
        return self.float32()

    def float32(self) -> NDArray[np.float32]:  # noqa: D102
        return np.zeros(self.shape, np.float32)


class Tensors(dict[str, Tensor]):
    """The tensors of a checkpoint by name. A codec takes parts out of them, and puts in what they make."""

    def prefixes(self, *parts: str) -> list[str]:
        """Returns the names in front of ".part", in order, for every tensor whose last part is one of these."""
        found = (name.rpartition(".") for name in self)
        return list(dict.fromkeys(prefix for prefix, dot, part in found if dot and part in parts))

    def needed(self, name: str, beside: Tensor) -> Tensor:
        """Takes a tensor out.

        Raises:
            GossamerError: it is missing beside a tensor that is there.
        """
        found = self.pop(name, None)
        if found is None:
            raise GossamerError(f"{beside.path}: tensor {name} is missing; {beside.name} needs it")
        return found

    def put(self, name: str, tensor: Tensor) -> None:
        """Puts in what a codec made.

        Raises:
            GossamerError: the name is taken.
        """
        if name in self:
            raise tensor.bad(f"stands for {name}, which is stored as well")
        self[name] = tensor
