"""Functions whose gradients are written out: what torch would chain together passes over memory several times more.

On a CPU that matters: between its products a block of a small model is bound by memory. Every function has the values
that the chain has, and keeps less for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class RmsNorm(torch.autograd.Function):
    """Rows of unit mean square, float32, times a weight (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """Returns x [..., width] with rows of unit mean square, times a weight [width]."""
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        unit = x * inverse
        return unit if weight is None else unit.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Returns those of x and weight."""
        x, inverse, weight = ctx.saved_tensors
        unit = x * inverse
        (found,) = gradients
        of_weight = None
        if weight is not None:
            if ctx.needs_input_grad[1]:
                of_weight = (found * unit).flatten(0, -2).sum(0)
            found = found * weight
        along = torch.linalg.vecdot(found, unit).div_(x.shape[-1]).unsqueeze(-1)
        return torch.addcmul(found, unit, along, value=-1.0).mul_(inverse), of_weight, None


class Rotation(torch.autograd.Function):
    """Turns the pairs (j, j + rotary_dim / 2) of heads; what lies beyond stays. The gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Returns x [..., head_dim], turned; cos and sin may be broadcast."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Returns that of x."""
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    wide = x[..., : 2 * half].float()
    a, b = wide[..., :half], wide[..., half:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out[..., :half] = (a * cos).addcmul_(b, sin, value=-1.0)
    out[..., half : 2 * half] = (b * cos).addcmul_(a, sin)
    if x.shape[-1] > 2 * half:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out


class SiluGate(torch.autograd.Function):
    """silu(gate) * up, of both side by side."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Returns [..., width] for gate and up [..., 2 width]."""
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Returns that of both."""
        (both,), (found,) = ctx.saved_tensors, gradients
        gate, up = both.chunk(2, -1)
        out = torch.empty_like(both)
        of_gate, of_up = out.chunk(2, -1)
        torch.mul(functional.silu(gate), found, out=of_up)
        of_gate.copy_(torch.ops.aten.silu_backward(found * up, gate))
        return out


class Products(torch.autograd.Function):
    """What several matrices give for one input, as one product in the input's type, whatever type the matrices have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        """Returns [..., rows of all] for x [..., cols] and weights [rows, cols]."""
        low = [weight.to(x.dtype) for weight in weights]
        matrix = low[0] if len(low) == 1 else torch.cat(low)
        ctx.save_for_backward(x, matrix)
        ctx.weights = [(len(weight), weight.dtype) for weight in weights]
        return functional.linear(x, matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns those of x and of each weight."""
        x, matrix = ctx.saved_tensors
        (found,) = gradients
        rows = found.flatten(0, -2)
        of_x = (rows @ matrix).view(x.shape) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return of_x, *(None for _ in ctx.weights)
        every = (rows.T @ x.flatten(0, -2)).split([count for count, _ in ctx.weights])
        return of_x, *(part.to(dtype) for part, (_, dtype) in zip(every, ctx.weights, strict=True))


class Attention(torch.autograd.Function):
    """Attention whose weights are kept, over the keys that are looked at: torch's own computes them again, and all."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        scale: float,
        blocks: Sequence[tuple[slice, slice]],
    ) -> Tensor:
        """Returns [batch, kv_heads, times, n, width].

        Args:
            ctx: What the backward pass needs.
            queries: [batch, kv_heads, times, n, width].
            keys: [batch, kv_heads, m, width].
            values: As keys.
            mask: Added to scores, float32 [batch or 1, 1, n, m].
            scale: Of the products.
            blocks: Queries, all of them together, each with the keys that are not masked for all of them.
        """
        mixed, kept = torch.empty_like(queries), []
        for rows, cols in blocks:
            products = (queries[..., rows, :].flatten(2, 3) @ keys[..., cols, :].mT).float()
            by_query = products.unflatten(2, (queries.shape[2], -1))
            by_query.mul_(scale).add_(mask[:, :, None, rows, cols])
            weights = products.softmax(-1).to(values.dtype)
            kept.append(weights)
            mixed[..., rows, :] = (weights @ values[..., cols, :]).unflatten(2, (queries.shape[2], -1))
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.scale, ctx.blocks = scale, blocks
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns those of queries, keys and values."""
        queries, keys, values, *kept = ctx.saved_tensors
        (found,) = gradients
        of_queries = torch.empty_like(queries)
        of_keys, of_values = (torch.zeros_like(one, dtype=torch.float32) for one in (keys, values))
        for (rows, cols), weights in zip(ctx.blocks, kept, strict=True):
            asked, along = (one[..., rows, :].flatten(2, 3) for one in (queries, found))
            of_weights = along @ values[..., cols, :].mT
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            of_queries[..., rows, :] = (of_scores @ keys[..., cols, :]).unflatten(2, (queries.shape[2], -1))
            of_keys[..., cols, :] += of_scores.mT @ asked
            of_values[..., cols, :] += weights.mT @ along
        return of_queries, of_keys.to(keys.dtype), of_values.to(values.dtype), None, None, None
