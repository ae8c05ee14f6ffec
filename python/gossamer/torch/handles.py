"""Native weights over tensors' memory, made when first needed, kept as long as the tensors and no longer than they are true."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _core
from .layout import NAMES, Layout, to_weight

_SPARE, _LINE = 64, 64  # readable bytes behind the values, and what streams are rounded up to


def _mark(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor's memory is another or was written to."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Handle:
    """A native weight for a vector of values and the streams that index it.

    Values are bytes, used where they lie, or floating point (a trainable layer's): then the stream is a copy that
    follows them.
    """

    def __init__(self, values: Tensor, index: Sequence[Tensor], numbers: list[int]) -> None:
        self._tensors = (weakref.ref(values), *map(weakref.ref, index))
        self._marks = tuple(map(_mark, (values, *index)))
        self._follows = values.is_floating_point()
        layout = Layout.from_numbers(list(numbers))
        streams = dict(zip(layout.index, index, strict=True))
        if self._follows:
            layout, streams = self._own_stream(values, layout, streams)
        else:
            streams["values"] = values
        self.layout = layout
        self.weight = to_weight(layout, streams)

    def _own_stream(
        self, values: Tensor, layout: Layout, streams: dict[str, Tensor]
    ) -> tuple[Layout, dict[str, Tensor]]:
        type = NAMES[values.dtype]
        scaled = Layout(layout.format, type, layout.rows, layout.cols)
        if type != layout.type:  # the layer was converted, and offsets count bytes
            offsets = streams["offsets"].view(torch.int64)
            widths = torch.tensor([], dtype=values.dtype).element_size(), 4 if layout.type == "f32" else 2
            streams = {**streams, "offsets": (offsets * widths[0] // widths[1]).view(torch.uint8)}
        size = values.numel() * values.element_size()
        self._bytes = torch.zeros(-(-(size + _SPARE) // _LINE) * _LINE, dtype=torch.uint8)
        self._copy(values)
        return scaled, {**streams, "values": self._bytes}

    def _copy(self, values: Tensor) -> None:
        size = values.numel() * values.element_size()
        self._bytes[:size].view(values.dtype).copy_(values.detach())

    def serves(self, values: Tensor, index: Sequence[Tensor]) -> bool:
        """Whether these are the tensors, unchanged; values that alone were written to are copied again."""
        tensors = (values, *index)
        if len(tensors) != len(self._tensors):
            return False
        for seen, tensor in zip(self._tensors, tensors, strict=True):
            if seen() is not tensor:
                return False
        marks = tuple(map(_mark, tensors))
        if marks == self._marks:
            return True
        if not self._follows or marks[1:] != self._marks[1:] or NAMES.get(values.dtype) != self.layout.type:
            return False
        self._copy(values)
        self._marks = marks
        return True


_handles: dict[int, Handle] = {}
_lock = threading.Lock()


def handle_of(values: Tensor, index: Sequence[Tensor], numbers: list[int]) -> Handle:
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
        made = Handle(values, index, numbers)
        if found is None:
            weakref.finalize(values, _handles.pop, key, None)
        _handles[key] = made
        return made
