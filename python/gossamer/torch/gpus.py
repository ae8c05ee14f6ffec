"""Packed layers on GPUs: handles that multiply where their tensors lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import GossamerError
from ..gpu.cuda import CudaWeight
from .handles import Handle, Marks
from .layout import Layout, to_weight


class GpuHandle:
    """What multiplies with a layer's tensors on a GPU.

    Weights with values of 16 bits, int8 or int4 are repacked for the kernels once, and the streams are checked on the
    host first. What no kernel takes (float32 values, values that are trained, inputs of another type) is expanded to a
    dense matrix, and torch multiplies: as exact as on the processor, and as slow as dense.

    Attributes:
        layout: What the streams hold.
    """

    def __init__(
        self, values: Tensor, index: Sequence[Tensor], numbers: Sequence[int], kernels: ModuleType | None = None
    ) -> None:
        """Repacks the streams.

        Args:
            values: As the next two, see `Handle`.
            index: Streams beside the values.
            numbers: Of the layout.
            kernels: As for `CudaWeight`.

        Raises:
            GossamerError: the GPU cannot be used, has too little memory, or is just capturing a graph.
            ValueError: the streams contradict each other or the layout.
        """
        device = values.device
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise GossamerError("a layer must run once before its first call is captured in a CUDA graph")
        self._marks = Marks(values, index)
        self._trained: Handle | None = None
        self._places: Tensor | None = None
        self._dense: Tensor | None = None
        self._gpu: CudaWeight | None = None
        self.layout = layout = Layout.from_numbers(list(numbers))
        host, others = values.detach().cpu(), [stream.cpu() for stream in index]
        try:
            if values.is_floating_point():
                self._trained = Handle(host, others, numbers)
                self._places = self._trained.places(0, self._trained.span(0, layout.rows)[1]).to(device)
                return
            weight = to_weight(layout, {**dict(zip(layout.index, others, strict=True)), "values": host})
            if layout.type == "f32":
                self._dense = torch.from_numpy(weight.unpack()).to(device)
            else:
                self._gpu = CudaWeight(weight, device, kernels=kernels)
        except torch.cuda.OutOfMemoryError:
            raise GossamerError(f"out of memory on {device} for a layer of {layout.rows} x {layout.cols}") from None

    def serves(self, values: Tensor, index: Sequence[Tensor]) -> bool:
        """Whether these are the tensors, in the same memory, and nobody wrote to what was checked."""
        return self._marks.fit(values, index, written=self._trained is not None)

    def multiply(self, x: Tensor, bias: Tensor | None, activations: str) -> Tensor:
        """Returns x W^T + bias for x [..., cols] in a float type, [..., rows] in the same type; inputs stay exact."""
        del activations
        if self._gpu is not None and self._gpu.takes(x.dtype):
            return self._gpu.linear(x, None if bias is None else bias.to(x.dtype))
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = self.expand(0, self.layout.rows, wide)
        with torch.autocast(x.device.type, enabled=False):  # the types are chosen
            return functional.linear(x.to(wide), weight, None if bias is None else bias.to(wide)).to(x.dtype)

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the type that gradients of a type are multiplied in: their own where the weight is of it, too."""
        if self._gpu is not None and self._gpu.takes(dtype):
            return dtype
        return torch.promote_types(dtype, torch.float32)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Returns the rows to expand at a time: all."""
        return iter([(0, self.layout.rows)])

    def expand(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Returns the stored numbers of rows [first, last) as [rows, cols]."""
        if self._gpu is not None:
            return self._gpu.dense(dtype)[first:last]
        if self._dense is not None:
            return self._dense[first:last].to(dtype)
        assert self._places is not None
        values = self._marks.values
        out = values.new_zeros(self.layout.rows * self.layout.cols)
        out[self._places] = values[: len(self._places)]
        return out.view(self.layout.rows, self.layout.cols)[first:last].to(dtype)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Returns where the values of rows [first, last) of a trainable layer begin and end."""
        assert self._trained is not None
        return self._trained.span(first, last)

    def places(self, begin: int, end: int) -> Tensor:
        """Returns the places of a trainable layer's values [begin, end) in the matrix, counted row by row."""
        assert self._places is not None
        return self._places[begin:end]
