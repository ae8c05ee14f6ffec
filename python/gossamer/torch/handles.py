"""Native weights over tensors' memory: made when first needed, kept while the tensors live and stay as they are."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .. import _core
from ..gpu.dtypes import FLOATS, NAMES
from .layout import Layout, to_weight

_SPARE, _LINE = 64, 64  # readable bytes behind the values, and what streams are rounded up to
_PANEL_ROWS = 16
_ALONE = 1 << 16  # numbers that one thread expands sooner than others are woken
_PANEL_BYTES = 4 << 20  # of expanded weights that a matrix product takes at a time
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def trainable_length(count: int) -> int:
    """Returns how long a trainable vector of `count` values is: long enough to be a stream itself in any float type."""
    return -(-(2 * count + _SPARE) // _LINE) * _LINE // 2


def _stream_bytes(count: int, width: int) -> int:
    return -(-(count * width + _SPARE) // _LINE) * _LINE


def _mark(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor's memory is another or was written to."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Product(Protocol):
    """What operators need of a layer's tensors: a handle for the device that they lie on."""

    layout: Layout

    def serves(self, values: Tensor, index: Sequence[Tensor]) -> bool:
        """Whether these are the tensors, in the same memory, and nobody wrote to what was checked."""

    def multiply(self, x: Tensor, bias: Tensor | None, activations: str) -> Tensor:
        """Returns x W^T + bias for x [..., cols] in a float type, [..., rows] in the same type.

        `activations` is as in `Layout`: derivatives are multiplied more exactly than the layer's own inputs.
        """

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the type that gradients of a type are multiplied in."""

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Returns the rows to expand at a time."""

    def expand(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Returns the stored numbers of rows [first, last), one of the blocks or all, as [rows, cols]."""

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Returns where the values of rows [first, last) of a trainable layer begin and end."""

    def places(self, begin: int, end: int) -> Tensor:
        """Returns the places of a trainable layer's values [begin, end) in the matrix, counted row by row."""


class Marks:
    """What a handle was made of: tensors, where they lay, and how often they had been written to."""

    def __init__(self, values: Tensor, index: Sequence[Tensor]) -> None:
        self._tensors = (weakref.ref(values), *map(weakref.ref, index))
        self._marks = tuple(map(_mark, (values, *index)))
        self._dtype = values.dtype

    def fit(self, values: Tensor, index: Sequence[Tensor], *, written: bool) -> bool:
        """Whether these are the tensors, in the same memory; `written`: the values may have been written to."""
        tensors = (values, *index)
        if len(tensors) != len(self._tensors) or values.dtype != self._dtype:
            return False
        if any(seen() is not tensor for seen, tensor in zip(self._tensors, tensors, strict=True)):
            return False
        marks = tuple(map(_mark, tensors))
        return marks == self._marks or (written and _but_for_writes(marks) == _but_for_writes(self._marks))

    @property
    def values(self) -> Tensor:
        """The values, which whoever asks keeps alive."""
        found = self._tensors[0]()
        assert found is not None
        return found.detach()


class Handle:
    """A native weight for a vector of values and the streams that index it.

    Values are bytes, or floating point (a trainable layer's, with some zeros behind the last): used where they lie, so
    that what an optimizer writes is there at once.

    Attributes:
        layout: What the native weight holds.
        weight: The native weight.
    """

    def __init__(self, values: Tensor, index: Sequence[Tensor], numbers: Sequence[int]) -> None:
        self._marks = Marks(values, index)
        self._dtype = values.dtype
        self._linears: dict[str, _core.Linear] = {}
        self._places: Tensor | None = None
        self._narrowed: Tensor | None = None
        layout = Layout.from_numbers(list(numbers))
        streams = dict(zip(layout.index, index, strict=True))
        streams["values"] = values
        if values.is_floating_point():
            layout, streams = self._trainable(layout, streams)
        self.layout = layout
        self._streams = streams if values.is_floating_point() else {}
        self.weight = to_weight(layout, streams)

    def _trainable(self, layout: Layout, streams: dict[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
        values = streams["values"].detach()
        if values.dtype not in NAMES:  # float64, for checks, is multiplied expanded, and otherwise as float32
            values = self._narrowed = values.float()
        if layout.format != "bitmap" or values.dim() != 1 or not values.is_contiguous():
            raise ValueError("values that are trained must be a contiguous vector of a bitmap")
        type = NAMES[values.dtype]
        width = FLOATS[type].itemsize
        streams = _with_width(layout, streams, width)
        count = _count(streams, width)
        if len(values) != trainable_length(count):
            raise ValueError(f"stream 'values' must hold {trainable_length(count)} numbers, got {len(values)}")
        streams["values"] = values.view(torch.uint8)[: _stream_bytes(count, width)]
        return replace(layout, type=type), streams

    def serves(self, values: Tensor, index: Sequence[Tensor]) -> bool:
        """Whether these are the tensors, in the same memory, and nobody wrote to what was checked."""
        if not self._marks.fit(values, index, written=bool(self._streams)):
            return False
        if self._narrowed is not None:
            self._narrowed.copy_(values.detach())
        return True

    def multiply(self, x: Tensor, bias: Tensor | None, activations: str) -> Tensor:
        """Returns x W^T + bias for x [..., cols] in a float type, [..., rows] in the same type."""
        rows, cols = self.layout.rows, self.layout.cols
        if bias is not None and (bias.device != x.device or bias.shape != (rows,)):
            raise ValueError(
                f"a bias must be {rows} numbers on device {x.device}, got shape {tuple(bias.shape)} on {bias.device}"
            )
        if x.dtype == torch.float64:
            y = x @ self.expand(0, rows, torch.float64).t()
            return y if bias is None else y + bias
        shape = (*x.shape[:-1], rows)
        if x.is_contiguous():
            tokens, stride = x.numel() // cols, cols
        else:
            flat = x.reshape(-1, cols)
            x = flat if flat.stride(1) == 1 else flat.contiguous()
            tokens, stride = x.shape[0], x.stride(0)
        address = x.data_ptr()
        if not address and tokens:  # zeros without memory, as torch has them amid derivatives
            x = torch.zeros(tokens, cols, dtype=x.dtype, device="cpu")
            address, stride = x.data_ptr(), cols
        y = x.new_empty(shape)
        bias_address = bias_type = 0
        if bias is not None:
            if bias.dtype not in _CODES or not bias.is_contiguous() or bias.is_neg():
                bias = bias.to(x.dtype).contiguous().resolve_neg()
            bias_address, bias_type = bias.data_ptr(), _CODES[bias.dtype]
        linear = self.linear(x.dtype, activations)
        threads = torch.get_num_threads()
        linear.multiply(address, tokens, stride, y.data_ptr(), _CODES[x.dtype], bias_address, bias_type, threads)
        return y

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the type that gradients of a type are multiplied in."""
        return torch.promote_types(dtype, torch.float32)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Returns the rows to expand at a time: whole panels, few enough for the cache."""
        rows, cols = self.layout.rows, self.layout.cols
        step = max(1, _PANEL_BYTES // (4 * _PANEL_ROWS * cols)) * _PANEL_ROWS
        return ((first, min(rows, first + step)) for first in range(0, rows, step))

    def linear(self, dtype: torch.dtype, activations: str) -> _core.Linear:
        """Returns the weight with kernels for inputs of a type."""
        if activations == "auto" and dtype == torch.bfloat16 and self.layout.type in ("bf16", "f16"):
            activations = "bf16"
        found = self._linears.get(activations)
        if found is None:
            found = self._linears[activations] = _core.Linear(self.weight, activations)
        return found

    def expand(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Returns the stored numbers of rows [first, last), where first is a multiple of 16, as [rows, cols]."""
        rows, cols = last - first, self.layout.cols
        if self._dtype == torch.float64:
            begin, end = self.span(first, last)
            out = torch.zeros(rows * cols, dtype=torch.float64, device="cpu")
            out[self.places(begin, end) - first * cols] = self._marks.values[begin:end]
            return out.view(rows, cols).to(dtype)
        out = torch.empty(rows, cols, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
        panels = first // _PANEL_ROWS, -(-last // _PANEL_ROWS)
        threads = torch.get_num_threads() if rows * cols > _ALONE else 1
        self.linear(torch.float32, self.layout.activations).expand(*panels, out.data_ptr(), cols, threads)
        return out.to(dtype)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Returns where the values of rows [first, last) of a trainable layer begin and end."""
        offsets = self._streams["offsets"].view(torch.int64)
        width = FLOATS[self.layout.type].itemsize
        return int(offsets[first // _PANEL_ROWS]) // width, int(offsets[-(-last // _PANEL_ROWS)]) // width

    def places(self, begin: int, end: int) -> Tensor:
        """Returns the places of a trainable layer's values [begin, end) in the matrix, counted row by row."""
        if self._places is None:
            layout = replace(self.layout, type="f32")
            streams = _with_width(self.layout, self._streams, 4)
            count = _count(streams, 4)
            numbers = torch.zeros(_stream_bytes(count, 4), dtype=torch.uint8, device="cpu")
            numbers[: 4 * count].view(torch.int32).copy_(torch.arange(1, count + 1, dtype=torch.int32, device="cpu"))
            # Numbers pass through as the bits of floats, which nothing calculates with.
            found = to_weight(layout, {**streams, "values": numbers}).unpack().reshape(-1).view(np.int32)
            stored = np.flatnonzero(found)
            places = np.empty(count, np.int64)
            places[found[stored] - 1] = stored
            self._places = torch.from_numpy(places)
        return self._places[begin:end]


def _but_for_writes(marks: tuple[tuple[int, int], ...]) -> tuple[object, ...]:
    """What tells whether a trainable layer is the same: its values may have been written to."""
    return marks[0][0], *marks[1:]


def _count(streams: dict[str, Tensor], width: int) -> int:
    """Values of a bitmap: its last offset, behind which a stream is filled up with zeros."""
    offsets = streams["offsets"]
    if offsets.numel() == 0 or offsets.numel() % 8:
        raise ValueError("stream 'offsets' must be a vector of bytes, whole elements of uint64")
    return int(offsets.view(torch.int64).max()) // width


def _with_width(layout: Layout, streams: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The streams for values of `width` bytes: offsets count bytes."""
    own = FLOATS[layout.type].itemsize
    if width == own:
        return dict(streams)
    offsets = streams["offsets"].view(torch.int64)
    return {**streams, "offsets": (offsets * width // own).view(torch.uint8)}


MAKERS: dict[str, Callable[[Tensor, Sequence[Tensor], Sequence[int]], Product]] = {"cpu": Handle}
"""What makes handles, by type of device."""

_handles: dict[int, Product] = {}
_lock = threading.Lock()
# A process is not forked while a thread makes a handle: the child would wait for that thread, which it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def handle_of(
    values: Tensor, index: Sequence[Tensor], numbers: Sequence[int], check: Callable[[], None] | None = None
) -> Product:
    """Returns the handle of these tensors, made now or before.

    Args:
        values: As the next two, see `Handle`.
        index: Streams beside the values.
        numbers: Of the layout.
        check: Called before one is made; may raise.

    Raises:
        GossamerError: they lie on a GPU, and it cannot be used.
        ValueError: the streams contradict each other or the layout, or lie on a device that nothing multiplies on.
    """
    key = id(values)
    found = _handles.get(key)
    if found is not None and found.serves(values, index):
        return found
    with _lock:
        found = _handles.get(key)
        if found is not None and found.serves(values, index):
            return found
        make = MAKERS.get(values.device.type)
        if make is None:
            raise ValueError(
                f"the weights lie on device {values.device}, and there are kernels for {', '.join(MAKERS)}"
            )
        if check is not None:
            check()
        made = make(values, index, numbers)
        if found is None:
            weakref.finalize(values, _handles.pop, key, None).atexit = False
        _handles[key] = made
        return made
