"""What the tests of gossamer.torch share: pruned layers, and how far a product may be from float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from gossamer import _core

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-53}
"""Half a unit in the last place of 1: what rounding to nearest may change, relatively."""

SMALLEST = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25, torch.float64: 0.0}
"""Half of the smallest number: what rounding may change where numbers become subnormal."""


def pruned(
    rows: int, cols: int, zeros: float = 0.5, *, bias: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0
) -> nn.Linear:
    """A seeded layer [rows, cols] with zeros at random places."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(cols, rows, bias=bias)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / cols**0.5)
        linear.weight[torch.rand(rows, cols, generator=generator) < zeros] = 0
    return linear.to(dtype)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Seeded inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def keep_two_of_four(linear: nn.Linear) -> None:
    """Zeroes the two smallest magnitudes of every four inputs."""
    with torch.no_grad():
        groups = linear.weight.view(-1, 4)
        groups.scatter_(1, groups.abs().argsort(1)[:, :2], 0)


def seen(x: Tensor, a8_unit: int = 0) -> Tensor:
    """Inputs [tokens, cols] as the kernels get them, in float64."""
    if not a8_unit:
        return x.double()
    codes, scales, _ = _core.quantize_activations(x.float().numpy(), a8_unit)
    return torch.from_numpy((codes * np.repeat(scales.astype(np.float64), a8_unit, axis=1))[:, : x.shape[1]])


def worst(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, a8_unit: int = 0) -> float:
    """The largest error of y = x W^T + bias over what any order of float32 sums and one rounding of y allow.

    A term goes through at most cols additions and a few roundings more, each off by half a unit in the last place.
    """
    inputs = seen(x.detach().reshape(-1, x.shape[-1]), a8_unit)
    stored = weight.detach().double()
    true = inputs @ stored.t()
    size = inputs.abs() @ stored.abs().t()
    if bias is not None:
        true, size = true + bias.detach().double(), size + bias.detach().double().abs()
    sums = 1.01 * (stored.shape[1] + 16) * 2.0**-24 * size
    bound = sums + 1.01 * ROUNDING[y.dtype] * (true.abs() + sums) + SMALLEST[y.dtype] + 1e-300
    return float(((y.detach().reshape(true.shape).double() - true).abs() / bound).max()) if true.numel() else 0.0


class Tied(nn.Module):
    """Embedding and head share a weight; two packed layers between them, one of another type, and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(100, 256)
        self.up, self.down = pruned(300, 256, 0.6, seed=seed), pruned(256, 300, 0.95, bias=False, seed=seed + 1)
        self.norm = nn.LayerNorm(256).bfloat16()
        self.head = nn.Linear(256, 100, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(seed))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.down(torch.relu(self.up(self.embed(tokens))))
        return self.head(self.norm(x.bfloat16()).float())
