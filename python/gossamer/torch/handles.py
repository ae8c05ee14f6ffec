"""Native weights over tensors' memory: made when first needed, kept while the tensors live and stay as they are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import _core
from .layout import FLOATS, NAMES, Layout, to_weight

_SPARE, _LINE = 64, 64  # readable bytes behind the values, and what streams are rounded up to
_PANEL_ROWS = 16


def _mark(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor's memory is another or was written to."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Handle:
    """A native weight for a vector of values and the streams that index it.

    Values are bytes, used where they lie, or floating point (a trainable layer's): then the stream is a copy that
    follows them.

    Attributes:
        layout: What the native weight holds.
        weight: The native weight.
    """

    def __init__(self, values: Tensor, index: Sequence[Tensor], numbers: Sequence[int]) -> None:
        self._tensors = (weakref.ref(values), *map(weakref.ref, index))
        self._marks = tuple(map(_mark, (values, *index)))
        self._dtype = values.dtype
        self._linears: dict[str, _core.Linear] = {}
        self._places: Tensor | None = None
        layout = Layout.from_numbers(list(numbers))
        streams = dict(zip(layout.index, index, strict=True))
        if values.is_floating_point():
            stored = NAMES.get(values.dtype, "f32")  # float64 ones, for checks, are multiplied expanded
            streams = _with_width(layout, streams, FLOATS[stored].itemsize)
            layout = replace(layout, type=stored)
            size = values.numel() * FLOATS[stored].itemsize
            stream = torch.zeros(-(-(size + _SPARE) // _LINE) * _LINE, dtype=torch.uint8)
            self._copy = stream[:size].view(FLOATS[stored])
            self._copy.copy_(values.detach())
            streams["values"] = stream
        else:
            streams["values"] = values
        self.layout = layout
        self._streams = streams if values.is_floating_point() else {}
        self.weight = to_weight(layout, streams)

    def serves(self, values: Tensor, index: Sequence[Tensor]) -> bool:
        """Whether these are the tensors, unchanged; values that alone were written to are copied again."""
        tensors = (values, *index)
        if len(tensors) != len(self._tensors) or values.dtype != self._dtype:
            return False
        for seen, tensor in zip(self._tensors, tensors, strict=True):
            if seen() is not tensor:
                return False
        marks = tuple(map(_mark, tensors))
        if marks == self._marks:
            return True
        if not values.is_floating_point() or marks[1:] != self._marks[1:] or values.numel() != self._copy.numel():
            return False
        self._copy.copy_(values.detach())
        self._marks = marks
        return True

    def linear(self, dtype: torch.dtype) -> _core.Linear:
        """Returns the weight with kernels for inputs of a type."""
        activations = self.layout.activations
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
            values = self._tensors[0]()
            assert values is not None
            out = torch.zeros(rows * cols, dtype=torch.float64)
            out[self.places(begin, end) - first * cols] = values.detach()[begin:end]
            return out.view(rows, cols).to(dtype)
        out = torch.empty(rows, cols)
        panels = first // _PANEL_ROWS, -(-last // _PANEL_ROWS)
        self.linear(torch.float32).expand(*panels, out.data_ptr(), cols, torch.get_num_threads())
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
            count = self._copy.numel()
            numbers = torch.zeros(-(-(4 * count + _SPARE) // _LINE) * _LINE, dtype=torch.uint8)
            numbers[: 4 * count].view(torch.int32).copy_(torch.arange(1, count + 1, dtype=torch.int32))
            # Numbers pass through as the bits of floats, which nothing calculates with.
            found = to_weight(layout, {**streams, "values": numbers}).unpack().reshape(-1).view(np.int32)
            stored = np.flatnonzero(found)
            places = np.empty(count, np.int64)
            places[found[stored] - 1] = stored
            self._places = torch.from_numpy(places)
        return self._places[begin:end]


def _with_width(layout: Layout, streams: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The streams for values of `width` bytes: offsets count bytes."""
    own = FLOATS[layout.type].itemsize
    if width == own:
        return dict(streams)
    offsets = streams["offsets"].view(torch.int64)
    return {**streams, "offsets": (offsets * width // own).view(torch.uint8)}


_handles: dict[int, Handle] = {}
_lock = threading.Lock()


def handle_of(values: Tensor, index: Sequence[Tensor], numbers: Sequence[int]) -> Handle:
    """Returns the handle of these tensors, made now or before.

    Raises:
        ValueError: the streams contradict each other or the layout.
    """
    key = id(values)
    found = _handles.get(key)
    if found is not None and found.serves(values, index):
        return found
    with _lock:
        found = _handles.get(key)
        if found is not None and found.serves(values, index):
            return found
        if found is None:
            weakref.finalize(values, _handles.pop, key, None).atexit = False
        _handles[key] = made = Handle(values, index, numbers)
        return made
