"""How the operators are differentiated and batched, whatever asks: autograd, dual numbers, `torch.func`.

Each operator is linear in each of its float inputs. So every derivative, forward or backward and of any order, is one
of the three operators again, and what is multiplied with the weight there is not rounded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch import autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from .handles import Product, handle_of
from .layout import ACTIVATIONS

_ROWS, _COLS, _ACTIVATIONS = 3, 4, -1  # of a layout's numbers

Maybe = Tensor | None

_one_level: Any = autograd_function.__dict__["enable_single_level_autograd_function"]  # which mypy does not see


def _exact(layout: Sequence[int]) -> list[int]:
    """The layout for a product with inputs that are not rounded."""
    return [*layout[:_ACTIVATIONS], ACTIVATIONS.index("f32")]


def _linear(x: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int], bias: Maybe = None) -> Tensor:
    return torch.ops.gossamer.linear(x, values, index, layout, bias)  # type: ignore[no-any-return]


def _transposed(y: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> Tensor:
    return torch.ops.gossamer.linear_transposed(y, values, index, layout)  # type: ignore[no-any-return]


def _values(y: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> Tensor:
    return torch.ops.gossamer.linear_values(y, x, values, index, layout)  # type: ignore[no-any-return]


def _sum(parts: Sequence[Maybe]) -> Maybe:
    """The sum of those that are there."""
    total: Maybe = None
    for part in parts:
        total = part if total is None else total if part is None else total + part
    return total


@contextlib.contextmanager
def _below_this_level() -> Iterator[None]:
    """Goes on to what lies below autograd: the next transform, which may differentiate too, or the kernel."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        yield


class _Bilinear(_SingleLevelFunction):
    """What the operators share: they keep their inputs, and the streams of the index have no derivatives."""

    @classmethod
    def at_this_level(cls, *arguments: Any) -> Tensor:
        """Applies the function as autograd does.

        `Function.apply` would ask the transforms of `torch.func` first, but where the dispatcher calls an operator's
        derivative, it has been through them already.
        """
        function: Any = cls  # has what C++ gives it
        with _one_level():
            return function.apply(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        layout, *tensors = inputs
        ctx.layout = layout
        ctx.dtype = output.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


class _Linear(_Bilinear):
    """y = x W^T + b."""

    @staticmethod
    def forward(layout: Sequence[int], x: Tensor, values: Tensor, bias: Maybe, *index: Tensor) -> Tensor:
        with _below_this_level():
            return _linear(x, values, index, layout, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Maybe) -> tuple[Maybe, ...]:
        x, values, bias, *index = ctx.saved_tensors
        _, need_x, need_values, need_bias, *_ = ctx.needs_input_grad
        if gradient is None:
            return (None,) * (4 + len(index))
        to_x = _transposed(gradient, values, index, ctx.layout) if need_x else None
        to_values = _values(gradient, x, values, index, ctx.layout) if need_values else None
        to_bias = gradient.reshape(-1, ctx.layout[_ROWS]).sum(0).to(bias.dtype) if need_bias else None
        return (None, to_x, to_values, to_bias, *(None for _ in index))

    @staticmethod
    def jvp(ctx: Any, _: None, x: Maybe, values: Maybe, bias: Maybe, *__: Maybe) -> Maybe:
        old_x, old_values, _, *index = ctx.saved_tensors
        parts = [
            None if x is None else _linear(x, old_values, index, _exact(ctx.layout)),
            None if values is None else _linear(old_x, values, index, _exact(ctx.layout)),
        ]
        if bias is not None:
            parts.append(bias.to(ctx.dtype).expand(*old_x.shape[:-1], ctx.layout[_ROWS]))
        return _sum(parts)


class _Transposed(_Bilinear):
    """x = y W."""

    @staticmethod
    def forward(layout: Sequence[int], y: Tensor, values: Tensor, *index: Tensor) -> Tensor:
        with _below_this_level():
            return _transposed(y, values, index, layout)

    @staticmethod
    def backward(ctx: Any, gradient: Maybe) -> tuple[Maybe, ...]:
        y, values, *index = ctx.saved_tensors
        _, need_y, need_values, *_ = ctx.needs_input_grad
        if gradient is None:
            return (None,) * (3 + len(index))
        to_y = _linear(gradient, values, index, _exact(ctx.layout)) if need_y else None
        to_values = _values(y, gradient, values, index, ctx.layout) if need_values else None
        return (None, to_y, to_values, *(None for _ in index))

    @staticmethod
    def jvp(ctx: Any, _: None, y: Maybe, values: Maybe, *__: Maybe) -> Maybe:
        old_y, old_values, *index = ctx.saved_tensors
        return _sum(
            [
                None if y is None else _transposed(y, old_values, index, ctx.layout),
                None if values is None else _transposed(old_y, values, index, ctx.layout),
            ]
        )


class _Values(_Bilinear):
    """y^T x at the places of the values, of which only the number counts."""

    @staticmethod
    def forward(layout: Sequence[int], y: Tensor, x: Tensor, values: Tensor, *index: Tensor) -> Tensor:
        with _below_this_level():
            return _values(y, x, values, index, layout)

    @staticmethod
    def backward(ctx: Any, gradient: Maybe) -> tuple[Maybe, ...]:
        y, x, _, *index = ctx.saved_tensors
        _, need_y, need_x, *_ = ctx.needs_input_grad
        if gradient is None:
            return (None,) * (4 + len(index))
        to_y = _linear(x, gradient, index, _exact(ctx.layout)).to(y.dtype) if need_y else None
        to_x = _transposed(y, gradient, index, ctx.layout).to(x.dtype) if need_x else None
        return (None, to_y, to_x, None, *(None for _ in index))

    @staticmethod
    def jvp(ctx: Any, _: None, y: Maybe, x: Maybe, *__: Maybe) -> Maybe:
        old_y, old_x, values, *index = ctx.saved_tensors
        found = _sum(
            [
                None if y is None else _values(y, old_x, values, index, ctx.layout),
                None if x is None else _values(old_y, x, values, index, ctx.layout),
            ]
        )
        return torch.zeros_like(values) if found is None else found


def _autograd_linear(x: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int], bias: Maybe) -> Tensor:
    return _Linear.at_this_level(layout, x, values, bias, *index)


def _autograd_transposed(y: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> Tensor:
    return _Transposed.at_this_level(layout, y, values, *index)


def _autograd_values(y: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> Tensor:
    return _Values.at_this_level(layout, y, x, values, *index)


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    """A tensor with its batch, if it has one, as the first dimension."""
    return tensor if dim is None else tensor.movedim(dim, 0)


def _one_by_one(size: int, in_dims: Sequence[Any], arguments: Sequence[Any], call: Callable[..., Tensor]) -> Tensor:
    """Calls with each member of a batch, and stacks what comes."""

    def member(argument: Any, dim: Any, place: int) -> Any:
        if isinstance(argument, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [member(one, d, place) for one, d in zip(argument, dim, strict=True)]
        # A copy, since kernels want streams that begin where memory does.
        return argument if dim is None else argument.select(dim, place).clone()

    return torch.stack(
        [
            call(*(member(argument, dim, place) for argument, dim in zip(arguments, in_dims, strict=True)))
            for place in range(size)
        ]
    )


def _batched(dims: Any) -> bool:
    """Whether a tensor, or one of a list, has a batch."""
    return any(dim is not None for dim in dims) if isinstance(dims, (list, tuple)) else dims is not None


def _batch_linear(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    """Inputs and biases of a batch need one product; weights of a batch are multiplied one by one."""
    x_dim, values_dim, index_dims, _, bias_dim = in_dims
    if _batched(values_dim) or _batched(index_dims):
        return _one_by_one(info.batch_size, in_dims, arguments, _linear), 0
    x, values, index, layout, bias = arguments
    x = _front(x, x_dim)
    if bias_dim is None:
        return _linear(x, values, index, layout, bias), 0
    y = _linear(x, values, index, layout)
    bias = _front(bias, bias_dim).to(y.dtype)
    width = y.dim() - (x_dim is not None)
    return y + bias.view(info.batch_size, *(1,) * (width - 1), layout[_ROWS]), 0


def _batch_transposed(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    y_dim, values_dim, index_dims, _ = in_dims
    if _batched(values_dim) or _batched(index_dims):
        return _one_by_one(info.batch_size, in_dims, arguments, _transposed), 0
    y, *others = arguments
    return _transposed(_front(y, y_dim), *others), 0


def _batch_values(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    return _one_by_one(info.batch_size, in_dims, arguments, _values), 0


# `torch.autograd.grad(is_grads_batched=True)` and `torch.autograd.functional` batch with what came before `torch.func`:
# it has no rules in Python, but it can go through torch's own operators.


def _legacy_handle(values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> Product:
    try:
        values.data_ptr()
    except RuntimeError:  # a batch, which does not show its members
        raise NotImplementedError(
            "torch.autograd cannot batch over the values of a sparse layer; torch.func can"
        ) from None
    return handle_of(values, index, layout)


def _expanded(of: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A tensor and the dense weight, in the type that gradients are multiplied in."""
    handle = _legacy_handle(values, index, layout)
    wide = handle.wide(of.dtype)
    return of.to(wide), handle.expand(0, layout[_ROWS], wide)


def _legacy_linear(x: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int], bias: Maybe) -> Tensor:
    wide, weight = _expanded(x, values, index, layout)
    y = (wide @ weight.t()).to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype)


def _legacy_transposed(y: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> Tensor:
    wide, weight = _expanded(y, values, index, layout)
    return (wide @ weight).to(y.dtype)


def _legacy_values(y: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], layout: Sequence[int]) -> Tensor:
    handle = _legacy_handle(values, index, layout)
    wide = handle.wide(y.dtype)
    count = handle.span(0, layout[_ROWS])[1]
    left, right = y.reshape(-1, layout[_ROWS]).to(wide), x.reshape(-1, layout[_COLS]).to(wide)
    kept = (left.t() @ right).reshape(-1)[handle.places(0, count)].to(values.dtype)
    return torch.cat([kept, values.new_zeros(len(values) - count)])


def register(library: torch.library.Library) -> None:
    """Gives the operators their derivatives and their rules for batches."""
    for name, derivative, rule, legacy in (
        ("linear", _autograd_linear, _batch_linear, _legacy_linear),
        ("linear_transposed", _autograd_transposed, _batch_transposed, _legacy_transposed),
        ("linear_values", _autograd_values, _batch_values, _legacy_values),
    ):
        library.impl(name, derivative, "Autograd")
        library.impl(name, legacy, "Batched")
        if hasattr(torch.library, "register_vmap"):  # before torch 2.5, vmap says that it has no rule
            torch.library.register_vmap(f"gossamer::{name}", rule, lib=library)
