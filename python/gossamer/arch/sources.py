"""Where a canonical tensor lies in a checkpoint: fused, transposed, stacked and shifted tensors are one idea.

A `Source` reads a tensor of the description out of what is stored, and writes it back into it, so that a pruned q goes
back into a fused qkv.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from .spec import Transformer

Values = NDArray[np.float32]


ENCODER = "encoder."
"""Before the canonical names of what belongs to an encoder that a decoder reads."""


def parts_of(name: str) -> tuple[str, str, str]:
    """Splits a canonical name: layer ("" outside the blocks), short name, and "weight" or "bias" as checkpoints say.

    Of an encoder's the same as of a decoder's. Short names are "embed", "q", "attn_norm", "experts.17.up", ….
    """
    parts = name.removeprefix(ENCODER).split(".")
    kind = parts.pop() if parts[-1] == "bias" else "weight"
    inside = parts[0] == "layers"
    return parts[1] if inside else "", ".".join(parts[2:] if inside else parts), kind


def place(
    outline: Transformer,
    ends: Mapping[str, str],
    blocks: str,
    inside: Mapping[str, str],
    *,
    fused: Mapping[str, tuple[int, int, int]] = MappingProxyType({}),
    plus: Collection[str] = (),
) -> dict[str, Source]:
    """Returns where the tensors of a description lie, but for an encoder's beside it, by what a family calls them.

    Args:
        outline: The description, of which shapes alone are used.
        ends: Stored names of what is outside the blocks, without ".weight" or ".bias".
        blocks: What stands before those of a block, with {} for its number.
        inside: Stored names of what is in a block.
        fused: Which rows of the stored tensor are theirs, where others lie in it, too: (start, block, stride).
        plus: Those to whose stored values one is added.
    """
    found = {}
    for name, shape in outline.tensors.items():
        if name.startswith(ENCODER):
            continue
        layer, own, kind = parts_of(name)
        stored = blocks.format(layer) + inside[own] if layer else ends[own]
        rows = fused.get(own) if layer else None
        whole = shape if rows is None else (shape[0] // rows[1] * rows[2], *shape[1:])
        shift = 1.0 if own in plus and kind == "weight" else 0.0
        found[name] = Source(f"{stored}.{kind}", whole, rows=rows, plus=shift)
    return found


@dataclass(frozen=True)
class Source:
    """How a canonical tensor follows from a stored one; the steps are taken in the order of the attributes.

    Attributes:
        tensor: Name of the stored tensor.
        shape: Its whole shape.
        index: Which of a stack along the first axis; None where there is no stack.
        transpose: Whether inputs come first.
        rows: (start, block, stride): of every `stride` rows, `block` from `start` on; None takes all.
        heads: Heads that have each rotary pair side by side, where ours has halves of a head; 0 where they do not.
        plus: Added to every value.
        flat: Whether all axes behind the first one are one.
    """

    tensor: str
    shape: tuple[int, ...]
    index: int | None = None
    transpose: bool = False
    rows: tuple[int, int, int] | None = None
    heads: int = 0
    plus: float = 0.0
    flat: bool = False

    def inputs_first(self) -> Source:
        """Returns where the tensor lies if inputs come first there."""
        return replace(self, shape=self.shape[::-1], transpose=len(self.shape) == 2)

    @property
    def whole(self) -> bool:
        """Whether the canonical tensor is the stored one, value for value."""
        return self == Source(self.tensor, self.shape)

    @property
    def outcome(self) -> tuple[int, ...]:
        """Shape of the canonical tensor."""
        shape = self.shape if self.index is None else self.shape[1:]
        rows, *others = shape[::-1] if self.transpose else shape
        _, block, stride = self.rows or (0, rows, rows)
        return (rows // stride * block, *([prod(others)] if self.flat else others))

    def read(self, stored: Values) -> Values:
        """Returns the canonical tensor, float32; a view where nothing is computed.

        Args:
            stored: The whole stored tensor.

        Raises:
            GossamerError: it has another shape.
        """
        place = self._place(stored)
        values = place.reshape(-1, *([prod(place.shape[2:])] if self.flat else place.shape[2:]))
        if self.heads:
            pairs = values.reshape(self.heads, len(values) // self.heads // 2, 2, *values.shape[1:])
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
        return values + np.float32(self.plus) if self.plus else values

    def write(self, stored: Values, values: Values) -> None:
        """Puts a canonical tensor back where `read` takes it from.

        Args:
            stored: The whole stored tensor, which changes.
            values: The canonical tensor.

        Raises:
            GossamerError: a shape is another one.
        """
        if self.plus:
            values = values - np.float32(self.plus)
        if self.heads:
            halves = values.reshape(self.heads, 2, len(values) // self.heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        place = self._place(stored)
        rows = place.shape[0] * place.shape[1]
        shape = (rows, prod(place.shape[2:])) if self.flat else (rows, *place.shape[2:])
        if values.shape != shape:
            raise GossamerError(f"tensor {self.tensor}: has place for {list(shape)}, got {list(values.shape)}")
        place[...] = values.reshape(place.shape)

    def _place(self, stored: Values) -> Values:
        """A view of the canonical tensor's rows in the stored one, [repeats, rows of each, ...]."""
        if stored.shape != self.shape:
            raise GossamerError(f"tensor {self.tensor} is {list(stored.shape)}, not {list(self.shape)}")
        values = stored if self.index is None else stored[self.index]
        if self.transpose:
            values = values.T
        start, block, stride = self.rows or (0, len(values), len(values))
        return values.reshape(-1, stride, *values.shape[1:])[:, start : start + block]
