"""The operators `torch.ops.gossamer.*`: what `torch.compile`, `torch.export` and autograd see of a packed layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.utils.flop_counter import register_flop_formula

from .. import _core
from ..gpu.dtypes import NAMES
from . import derivatives
from .gpus import GpuHandle
from .handles import MAKERS, handle_of
from .layout import ACTIVATIONS

_ROWS, _COLS, _ACTIVATIONS = 3, 4, -1  # of a layout's numbers
_core.use_open_mp(torch._C.__file__)

_library = torch.library.Library("gossamer", "DEF")
_STREAMS = "Tensor values, Tensor[] index, int[] layout"
_library.define(f"linear(Tensor x, {_STREAMS}, Tensor? bias) -> Tensor")
_library.define(f"linear_transposed(Tensor y, {_STREAMS}) -> Tensor")
_library.define(f"linear_values(Tensor y, Tensor x, {_STREAMS}) -> Tensor")


def _nobody_watches(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and not x.is_neg()
        and forward_ad._current_level < 0
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and torch._C._get_tracing_state() is None
    )


def _somebody_may(x: Tensor) -> bool:
    del x
    return False


# Whether a product needs no operator: x is a plain tensor, and no mode, transform, dual level or tracer looks on. The
# dispatcher costs more than a small product does, so it is passed by where torch tells that it is not needed.
try:
    _nobody_watches(torch.empty(0))
    nobody_watches = _nobody_watches
except AttributeError:  # a torch that keeps these elsewhere
    nobody_watches = _somebody_may


def _linear(x: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int], bias: Tensor | None) -> Tensor:
    return handle_of(values, index, layout).multiply(x, bias, ACTIVATIONS[layout[_ACTIVATIONS]])


def _linear_transposed(y: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int]) -> Tensor:
    handle = handle_of(values, index, layout)
    wide = handle.wide(y.dtype)
    flat = y.reshape(-1, layout[_ROWS]).to(wide)
    out = flat.new_zeros((len(flat), layout[_COLS]))
    for first, last in handle.blocks():
        out.addmm_(flat[:, first:last], handle.expand(first, last, wide))
    return out.to(y.dtype).view(*y.shape[:-1], layout[_COLS])


def _linear_values(y: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], layout: list[int]) -> Tensor:
    handle = handle_of(values, index, layout)
    wide = handle.wide(y.dtype)
    left, right = y.reshape(-1, layout[_ROWS]).to(wide), x.reshape(-1, layout[_COLS]).to(wide)
    out = torch.zeros_like(values)
    for first, last in handle.blocks():
        begin, end = handle.span(first, last)
        outer = (left[:, first:last].t() @ right).view(-1)
        out[begin:end] = outer[handle.places(begin, end) - first * layout[_COLS]]
    return out


MAKERS["cuda"] = GpuHandle
for _key in ("CPU", "CUDA"):  # what differs is the handle
    _library.impl("linear", _linear, _key)
    _library.impl("linear_transposed", _linear_transposed, _key)
    _library.impl("linear_values", _linear_values, _key)


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
derivatives.register(_library)


def _flops(x: Sequence[int], _: object, __: object, layout: Sequence[int], *___: object, **____: object) -> int:
    """What torch counts for the product of the matrix that is stood for; x may be the outputs."""
    return 2 * math.prod(x[:-1]) * layout[_ROWS] * layout[_COLS]


def _value_flops(y: Sequence[int], _: object, *streams: Any, **__: object) -> int:
    return _flops(y, *streams)


_ops = torch.ops.gossamer
register_flop_formula([_ops.linear, _ops.linear_transposed])(_flops)
register_flop_formula(_ops.linear_values)(_value_flops)


def each_part(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Runs a layer over the tensors that a nested one holds, and nests what it returns in the same way."""
    if x.layout == torch.jagged:
        offsets, lengths = x.offsets(), x.lengths()  # type: ignore[attr-defined]
        return torch.nested.nested_tensor_from_jagged(layer(x.values()), offsets, lengths)
    return torch.nested.as_nested_tensor([layer(part) for part in x.unbind()])


def traced(layer: Any, x: Any) -> Any:
    """Returns what stands for a packed layer's output where `torch.fx` traces with something that stands for its input.

    Raises:
        TypeError: it is something else that is no tensor.
    """
    if not isinstance(x, Proxy):
        raise TypeError(f"{layer._title()}: inputs must be a tensor, got {type(x).__name__}")
    if x.tracer.root is layer:  # type: ignore[attr-defined]
        return torch.ops.gossamer.linear(x, layer.values, layer._index(), layer._numbers, layer.bias)
    # One node, as for layers of torch, which tracers do not look into either.
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(layer), (x,), {})  # type: ignore[attr-defined]


def check_input(layer: Any, x: Tensor) -> None:
    """Refuses inputs that a packed layer cannot multiply.

    Raises:
        TypeError: they are no tensor of a float type.
        ValueError: the last dimension is not in_features, or they lie on a device that the layer cannot run on.
    """
    if x.dtype not in NAMES and x.dtype != torch.float64:
        raise TypeError(f"{layer._title()}: inputs must be float32, bfloat16 or float16, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{layer._title()}: inputs must be dense tensors, got layout {x.layout} (use to_dense)")
    if x.dim() == 0 or x.shape[-1] != layer.in_features:
        raise ValueError(
            f"{layer._title()}: the last dimension of the inputs must be {layer.in_features}, got {tuple(x.shape)}"
        )
    if x.device != layer.values.device or x.device.type not in MAKERS:
        raise ValueError(
            f"{layer._title()}: inputs lie on device {x.device} and weights on {layer.values.device}; "
            f"both must be on the same one, of type {' or '.join(MAKERS)}"
        )
    if layer.bias is not None and layer.bias.device != x.device:
        raise ValueError(f"{layer._title()}: inputs lie on device {x.device} and the bias on {layer.bias.device}")
