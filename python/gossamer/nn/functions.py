"""The mathematics between a decoder's linears, a function each; norms and angles are float32 whatever comes in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float) -> Tensor:
    """Returns x [..., width] with rows of unit mean square, times a weight [width] (Zhang & Sennrich 2019)."""
    wide = x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (unit if weight is None else unit * weight).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Returns x [..., width] with rows of no mean and unit variance, times a weight, plus a bias (Ba et al. 2016)."""
    factor, shift = (None if vector is None else vector.float() for vector in (weight, bias))
    return functional.layer_norm(x.float(), x.shape[-1:], factor, shift, eps).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """Returns x times the normal distribution's share below x (Hendrycks & Gimpel 2016)."""
    return functional.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Returns `gelu` approximated by a tanh."""
    return functional.gelu(x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """Returns x / (1 + exp(-x)) (Hendrycks & Gimpel 2016)."""
    return functional.silu(x)


def relu(x: Tensor) -> Tensor:
    """Returns max(x, 0)."""
    return functional.relu(x)


def relu2(x: Tensor) -> Tensor:
    """Returns the square of max(x, 0) (So et al. 2021)."""
    return functional.relu(x).square()


def clamped(gate: Tensor, up: Tensor, limit: float | None, alpha: float, shift: float) -> Tensor:
    """Returns g / (1 + exp(-alpha g)) * (u + shift), g the gate up to a limit, u within the limit and its negative."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + shift)


def softcap(x: Tensor, cap: float) -> Tensor:
    """Returns cap tanh(x / cap)."""
    return cap * torch.tanh(x / cap)


def rotary_angles(places: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines, times a scale, of the angles by which tokens at `places` turn.

    Args:
        places: [n].
        inv_freq: Angle a place, [rotary_dim / 2].
        scale: Of the results.

    Returns:
        Two of [n, rotary_dim / 2], float32.
    """
    angles = torch.outer(places.float(), inv_freq.float())
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (j, j + rotary_dim / 2) of every head; what lies beyond rotary_dim stays.

    Args:
        x: [..., head_dim].
        cos: Of the angles, [..., rotary_dim / 2]; may be broadcast.
        sin: As cos.
    """
    half = cos.shape[-1]
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], dim=-1)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Returns attention [batch, heads, n, width] of whole sequences over themselves, with gradients.

    Args:
        queries: [batch, heads, n, width].
        keys: [batch, kv_heads, n, width].
        values: As keys.
        scale: Factor on the products of queries and keys.
    """
    shared = queries.shape[1] // keys.shape[1]
    if shared > 1:
        keys, values = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)
    return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)


def attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float, seen: Tensor | None = None) -> Tensor:
    """Returns attention [batch, heads, n, width]; heads that share keys are further queries of one head, not copies.

    Args:
        queries: [batch, heads, n, width].
        keys: [batch, kv_heads, m, width].
        values: As keys.
        scale: Factor on the products of queries and keys.
        seen: True where a query looks at a key, [n, m]; None for everywhere.
    """
    batch, heads, _, width = queries.shape
    kv_heads = keys.shape[1]
    mask = None if seen is None else seen.repeat(heads // kv_heads, 1)[None, None]
    asked = queries.reshape(batch, kv_heads, -1, width)
    mixed = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scale)
    return mixed.reshape(queries.shape)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Returns [..., n, heads * width] as [..., heads, n, width]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """Returns [..., heads, n, width] as [..., n, heads * width]."""
    return x.transpose(-2, -3).flatten(-2)


def apart(outputs: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
    """Returns outputs of linears one by one where some of them are one tensor side by side."""
    return outputs if len(outputs) == len(sizes) else joined(outputs).split(list(sizes), dim=-1)


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """Returns outputs of linears side by side."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=-1)
