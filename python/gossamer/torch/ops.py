"""The operators `torch.ops.gossamer.*`: what `torch.compile`, `torch.export` and autograd see of a packed layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from .handles import Handle, handle_of
from .layout import ACTIVATIONS

_ROWS, _COLS = 3, 4  # of a layout's numbers
_PANEL_BYTES = 4 << 20  # of expanded weights that a matrix product takes at a time
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_core.use_open_mp(torch._C.__file__)

_library = torch.library.Library("gossamer", "DEF")
_STREAMS = "Tensor values, Tensor[] index, int[] layout"
_library.define(f"linear(Tensor x, {_STREAMS}, Tensor? bias) -> Tensor")
_library.define(f"linear_transposed(Tensor y, {_STREAMS}) -> Tensor")
_library.define(f"linear_values(Tensor y, Tensor x, {_STREAMS}) -> Tensor")


def multiply(handle: Handle, x: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x W^T + bias for x [..., cols] in a float type, [..., rows] in the same type."""
    rows, cols = handle.layout.rows, handle.layout.cols
    if x.dtype == torch.float64:
        y = x @ handle.expand(0, rows, torch.float64).t()
        return y if bias is None else y + bias
    shape = (*x.shape[:-1], rows)
    if x.is_contiguous():
        tokens, stride = x.numel() // cols, cols
    else:
        flat = x.reshape(-1, cols)
        x = flat if flat.stride(1) == 1 else flat.contiguous()
        tokens, stride = x.shape[0], x.stride(0)
    y = x.new_empty(shape)
    bias_address = bias_type = 0
    if bias is not None:
        if bias.dtype not in _CODES or not bias.is_contiguous():
            bias = bias.to(x.dtype).contiguous()
        bias_address, bias_type = bias.data_ptr(), _CODES[bias.dtype]
    linear = handle.linear(x.dtype)
    threads = torch.get_num_threads()
    linear.multiply(x.data_ptr(), tokens, stride, y.data_ptr(), _CODES[x.dtype], bias_address, bias_type, threads)
    return y


def _nobody_watches(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and not x.is_neg()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and torch._C._get_tracing_state() is None
    )


def _somebody_may(x: Tensor) -> bool:
    del x
    return False


# Whether a product needs no operator: x is a plain tensor, and no mode, transform or tracer looks on. The dispatcher
# costs more than a small product does, so it is passed by where torch tells that it is not needed.
try:
    _nobody_watches(torch.empty(0))
    nobody_watches = _nobody_watches
except AttributeError:  # a torch that keeps these elsewhere
    nobody_watches = _somebody_may


def _blocks(layout: list[int]) -> Iterator[tuple[int, int]]:
    """Rows that are expanded at a time: whole panels, few enough for the cache."""
    rows, cols = layout[_ROWS], layout[_COLS]
    step = max(1, _PANEL_BYTES // (64 * cols)) * 16
    return ((first, min(rows, first + step)) for first in range(0, rows, step))


def _linear(x: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int], bias: Tensor | None) -> Tensor:
    return multiply(handle_of(values, index, layout), x, bias)


def _linear_transposed(y: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int]) -> Tensor:
    handle = handle_of(values, index, layout)
    wide = torch.promote_types(y.dtype, torch.float32)
    flat = y.reshape(-1, layout[_ROWS]).to(wide)
    out = flat.new_zeros((len(flat), layout[_COLS]))
    for first, last in _blocks(layout):
        out.addmm_(flat[:, first:last], handle.expand(first, last, wide))
    return out.to(y.dtype).view(*y.shape[:-1], layout[_COLS])


def _linear_values(y: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int]) -> Tensor:
    handle = handle_of(values, index, layout)
    wide = torch.promote_types(y.dtype, torch.float32)
    left, right = y.reshape(-1, layout[_ROWS]).to(wide), x.reshape(-1, layout[_COLS]).to(wide)
    out = torch.zeros_like(values)
    for first, last in _blocks(layout):
        begin, end = handle.span(first, last)
        outer = (left[:, first:last].t() @ right).view(-1)
        out[begin:end] = outer[handle.places(begin, end) - first * layout[_COLS]]
    return out


_library.impl("linear", _linear, "CPU")
_library.impl("linear_transposed", _linear_transposed, "CPU")
_library.impl("linear_values", _linear_values, "CPU")


def _fake_linear(x: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int], bias: Tensor | None) -> Tensor:
    del values, index, bias
    torch._check(x.shape[-1] == layout[_COLS])
    return x.new_empty((*x.shape[:-1], layout[_ROWS]))


def _fake_transposed(y: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int]) -> Tensor:
    del values, index
    return y.new_empty((*y.shape[:-1], layout[_COLS]))


def _fake_values(y: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int]) -> Tensor:
    del y, x, index, layout
    return torch.empty_like(values)


torch.library.register_fake("gossamer::linear", _fake_linear, lib=_library)
torch.library.register_fake("gossamer::linear_transposed", _fake_transposed, lib=_library)
torch.library.register_fake("gossamer::linear_values", _fake_values, lib=_library)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    x, values, index, layout, bias = inputs
    ctx.layout = layout
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values, *index)


def _linear_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    need_x, need_values, _, _, need_bias = ctx.needs_input_grad
    ops = torch.ops.gossamer
    to_x = ops.linear_transposed(gradient, values, index, ctx.layout) if need_x else None
    to_values = ops.linear_values(gradient, x, values, index, ctx.layout) if need_values else None
    to_bias = gradient.reshape(-1, ctx.layout[_ROWS]).sum(0).to(ctx.bias_dtype) if need_bias else None
    return to_x, to_values, [None] * len(index), None, to_bias


def _save_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, values, index, layout = inputs
    ctx.layout = layout
    ctx.save_for_backward(values, *index)


def _transposed_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    values, *index = ctx.saved_tensors
    if ctx.needs_input_grad[1]:
        raise NotImplementedError("second derivatives with respect to a sparse layer's values are not there")
    exact = [*ctx.layout[:-1], ACTIVATIONS.index("f32")]
    to_y = torch.ops.gossamer.linear(gradient, values, index, exact, None)
    return to_y, None, [None] * len(index), None


torch.library.register_autograd("gossamer::linear", _linear_gradients, setup_context=_save_linear, lib=_library)
torch.library.register_autograd(
    "gossamer::linear_transposed", _transposed_gradients, setup_context=_save_transposed, lib=_library
)
