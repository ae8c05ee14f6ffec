"""A weight's non-zeros on a GPU, for few tokens: a loop over them, instead of expanding everything that is zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIN_ZEROS = 0.8
"""From so many zeros on the loop should beat the expansion: an estimate, to be replaced by what a GPU measures."""

_LONGEST = 255  # inputs that one entry steps over
_WARPS = 16  # rows that a block works on at a time


@dataclass(frozen=True)
class NonZeros:
    """The entries of csrc/kernels/cuda/nonzeros.h, made on the device that they lie on.

    Attributes:
        type: Value type: f16, bf16, int8 or int4.
        rows: Outputs.
        cols: Inputs.
        group: Inputs a scale.
        offsets: int32 [rows * chunks + 1], in quads of entries.
        steps: uint8 [quads * 4].
        values: uint8, 8, 4 or 2 bytes a quad.
    """

    type: str
    rows: int
    cols: int
    group: int
    offsets: torch.Tensor
    steps: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, stored: torch.Tensor, type: str, group: int, chunk_cols: int) -> NonZeros:
        """Finds the entries of a matrix.

        Args:
            stored: [rows, cols], float16 or bfloat16; codes as they are, for integer types.
            type: Value type.
            group: Inputs a scale.
            chunk_cols: Inputs a chunk.
        """
        import torch

        rows, cols = stored.shape
        chunks = -(-cols // chunk_cols)
        row, column = stored.ne(0).nonzero(as_tuple=True)  # NaN is kept
        chunk, place = row * chunks + column // chunk_cols, column % chunk_cols
        follows = torch.zeros_like(chunk, dtype=torch.bool)
        follows[1:] = chunk[1:] == chunk[:-1]
        distance = place - torch.where(follows, place.roll(1), 0)
        long = ((distance - 1) // _LONGEST).clamp_(min=0)  # entries before, that only step
        counts = torch.zeros(rows * chunks, dtype=torch.int64, device=stored.device)
        counts.index_add_(0, chunk, 1 + long)
        offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=stored.device)
        torch.cumsum((counts + 3) // 4, 0, out=offsets[1:])
        before = counts.cumsum(0) - counts  # entries of the chunks before this one
        entry = (1 + long).cumsum(0) - 1 - before[chunk] + 4 * offsets[chunk]
        total = 4 * int(offsets[-1]) + 4  # never empty
        steps = torch.zeros(total, dtype=torch.uint8, device=stored.device)
        steps[entry] = (distance - _LONGEST * long).to(torch.uint8)
        for i in range(1, int(long.max()) + 1 if len(long) else 1):
            steps[entry[long >= i] - i] = _LONGEST
        found = stored[row, column]
        if type in ("f16", "bf16"):
            values = torch.zeros(total, dtype=stored.dtype, device=stored.device)
            values[entry] = found
            values = values.view(torch.uint8)
        else:
            zero = 128 if type == "int8" else 8
            values = torch.full((total,), zero, dtype=torch.uint8, device=stored.device)
            values[entry] = (found.to(torch.int16) + zero).to(torch.uint8)
            if type == "int4":
                values = values[0::2] | values[1::2] << 4
        return cls(type, rows, cols, group, offsets.to(torch.int32), steps, values)

    @property
    def nbytes(self) -> int:
        """Bytes that one call reads, but for scales."""
        return self.steps.numel() + self.values.numel() + 4 * self.offsets.numel()

    @property
    def chunks(self) -> int:
        """Of a row; more than one need partial sums."""
        return (self.offsets.numel() - 1) // self.rows

    @property
    def counters(self) -> int:
        """Words that blocks count in."""
        return -(-self.rows // _WARPS)

    def clone(self) -> NonZeros:
        """Returns the same in memory of its own."""
        return replace(self, offsets=self.offsets.clone(), steps=self.steps.clone(), values=self.values.clone())

    def linear(
        self,
        kernels: ModuleType,
        x: torch.Tensor,
        type_name: str,
        y: torch.Tensor,
        bias: torch.Tensor | None,
        scales: torch.Tensor | None,
        multiprocessors: int,
        counters: int,
        index: int,
        stream: int,
    ) -> None:
        """Multiplies x [tokens, cols] and writes y [tokens, rows]; everything was checked before."""
        import torch

        partials = None
        if self.chunks > 1:
            partials = torch.empty((self.chunks, len(x), self.rows), dtype=torch.float32, device=x.device)
        # Two blocks a multiprocessor, all at once, until a warp has eight rows for the inputs that its block loads.
        rows_each = max(1, min(8, -(-self.rows * self.chunks // (2 * _WARPS * multiprocessors))))
        kernels.nonzeros_linear(
            self.type, self.rows, self.cols, self.group, self.offsets.data_ptr(), self.steps.data_ptr(),
            self.values.data_ptr(), 0 if scales is None else scales.data_ptr(), x.data_ptr(), x.stride(0), type_name,
            len(x), y.data_ptr(), self.rows, 0 if bias is None else bias.data_ptr(), rows_each,
            0 if partials is None else partials.data_ptr(), counters, index, stream,
        )  # fmt: skip
