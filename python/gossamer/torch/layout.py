"""How a packed weight lies in tensors: a vector of bytes for each stream, and one of numbers that say what they are.

Bytes, since `half()` and `to(dtype)` convert whatever is floating point, and packed streams must stay as they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import _core
from ..errors import GossamerError
from ..formats import FORMATS, INTEGER_TYPES, TYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1  # of the numbers below, for streams laid out as docs/format.md says (cpu16x4-v1)

_NUMBERS = 9
_LOOKED_AT = 4096
_MOST = (1 << 23) - 1  # a float has it exactly: averages of the same number are that number

ACTIVATIONS = ("auto", "f32", "bf16", "a8")

_INDEX = {
    "dense": (),
    "bitmap": ("masks", "offsets"),
    "csr": ("columns", "lanes", "counts", "slots", "steps", "offsets"),
    "nm": ("masks",),
}
_ELEMENTS: dict[str, np.dtype[Any]] = {
    "scales": np.dtype("float16"),
    "masks": np.dtype("uint64"),
    "offsets": np.dtype("uint64"),
    "slots": np.dtype("uint64"),
    "steps": np.dtype("uint64"),
    "lanes": np.dtype("uint16"),
}
_BYTE: np.dtype[Any] = np.dtype("uint8")

STREAMS = ("values", *dict.fromkeys(name for names in _INDEX.values() for name in names), "scales")
"""Every stream that a format may have."""


@dataclass(frozen=True)
class Layout:
    """What a packed weight's streams hold.

    Attributes:
        format: One of `gossamer.formats.FORMATS`.
        type: One of `gossamer.formats.TYPES`.
        rows: Outputs.
        cols: Inputs.
        group: Inputs that a scale serves, 0 for a whole row; 0 for float types.
        pattern: (N, M) of format "nm".
        activations: How inputs are multiplied, one of `ACTIVATIONS`: as 32-bit floats ("f32"), rounded to "bf16", or to
            8 bits with a scale per 64 inputs, 32 with groups of 32 ("a8"); "auto" is a8 for integer values, bf16 for
            16-bit values with bfloat16 inputs, and f32 otherwise.
    """

    format: str
    type: str
    rows: int
    cols: int
    group: int = 0
    pattern: tuple[int, int] | None = None
    activations: str = "auto"

    @classmethod
    def of(cls, weight: _core.Weight, activations: str = "auto") -> Layout:
        """Describes a packed weight."""
        return cls(weight.format, weight.type, weight.rows, weight.cols, weight.group, weight.pattern, activations)

    @property
    def index(self) -> tuple[str, ...]:
        """Names of the streams beside "values", in a fixed order."""
        return (*_INDEX[self.format], *(("scales",) if self.type in INTEGER_TYPES else ()))

    def numbers(self) -> list[int]:
        """Returns the layout as whole numbers, as custom operators and saved tensors have it."""
        pattern = self.pattern or (0, 0)
        return [
            VERSION,
            FORMATS.index(self.format),
            TYPES.index(self.type),
            self.rows,
            self.cols,
            self.group,
            *pattern,
            ACTIVATIONS.index(self.activations),
        ]

    @classmethod
    def from_numbers(cls, numbers: list[int]) -> Layout:
        """Reads what `numbers` returned.

        Behind them may be what `bytes_sum` gave.

        Raises:
            ValueError: it is nothing that this version knows.
        """
        if len(numbers) not in (_NUMBERS, _NUMBERS + 1) or numbers[0] != VERSION:
            raise ValueError(f"the layout {numbers[:_NUMBERS]} is not one that this version of gossamer knows")
        _, format, type, rows, cols, group, n, m, activations = numbers[:_NUMBERS]
        names = ((FORMATS, format), (TYPES, type), (ACTIVATIONS, activations))
        if not all(0 <= place < len(of) for of, place in names) or not all(0 < size < 1 << 31 for size in (rows, cols)):
            raise ValueError(f"the layout {numbers} names no format, type, activations or size")
        pattern = (n, m) if m else None
        return cls(FORMATS[format], TYPES[type], rows, cols, group, pattern, ACTIVATIONS[activations])


def bytes_sum(streams: Iterable[Tensor]) -> int:
    """Returns a checksum of the beginnings of packed streams; 0 where some have no values.

    What averages or scales a model's tensors does so to all bytes of a stream, so that the first ones tell.
    """
    found = 0
    for stream in streams:
        if stream.is_meta:
            return 0
        if stream.dtype == torch.uint8:  # values that are trained change
            found = zlib.crc32(stream.detach()[:_LOOKED_AT].cpu().contiguous().numpy().data, found)
    return (found & _MOST) or 1


def check_bytes(stored: Tensor, numbers: list[int], streams: Iterable[Tensor], begin: str = "") -> None:
    """Refuses packed bytes that somebody has calculated with; copies of other layers' come with their own checksum.

    Args:
        stored: The layout's numbers and the checksum, as they lie beside the streams.
        numbers: The layout's numbers.
        streams: The packed streams.
        begin: Of the error's line.

    Raises:
        GossamerError: the bytes are not those that were packed.
    """
    if stored.is_meta:
        return
    found = stored.tolist()
    expected = bytes_sum(streams) if any(found[_NUMBERS:]) else 0
    if found[:_NUMBERS] != numbers or (expected and found[_NUMBERS:] != [expected]):
        raise GossamerError(
            f"{begin}its packed bytes were changed, as by an average over buffers (AveragedModel(use_buffers=True)), "
            "and are no weight any more; leave packed layers out of that, or make them dense first (desparsify)"
        )


def to_tensors(weight: _core.Weight) -> dict[str, Tensor]:
    """Returns a weight's streams as byte tensors with memory of their own."""
    return {name: torch.from_numpy(stream.view(np.uint8).copy()) for name, stream in weight.streams().items()}


def to_weight(layout: Layout, streams: dict[str, Tensor]) -> _core.Weight:
    """Makes the native weight over tensors' memory, and checks every size, offset and index in it.

    Nothing is copied, but for streams that do not begin at a multiple of their elements' size.

    Raises:
        ValueError: names the stream that is missing or wrong, and how.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in streams.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"stream '{name}' lies on device {tensor.device}, not cpu")
        element = _ELEMENTS.get(name, _BYTE)
        size = max(element.itemsize, 4 if layout.type == "f32" and name == "values" else 2)
        if tensor.dtype != torch.uint8 or tensor.dim() != 1 or tensor.numel() % element.itemsize:
            raise ValueError(f"stream '{name}' must be a vector of bytes, whole elements of {element}")
        stream = tensor.detach().contiguous()
        aligned = stream if stream.data_ptr() % size == 0 else stream.clone()
        arrays[name] = aligned.numpy().view(element)
    return _core.weight_from_streams(
        layout.format, layout.type, layout.rows, layout.cols, layout.group, layout.pattern, arrays
    )
