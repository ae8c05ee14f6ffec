"""What every decoder of torch computes between its linears, in float32 whatever comes in."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns x [..., width] with rows of unit mean square, times a weight [width] (Zhang & Sennrich 2019)."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


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
