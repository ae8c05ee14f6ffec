"""What an `Engine` does between linears and attention: in plain torch, and as three kernels of a card."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .layout import NAMES


class Steps(Protocol):
    """n tokens at a time; numbers have the activations' type, and are worked on in float32."""

    def add_norm(self, states: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Returns states + update [n, width], and that with rows of unit mean square times a float32 weight.

        RMS norm is that of Zhang & Sennrich (2019). The states may be written to.
        """

    def rotate(
        self, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Returns turned queries [heads, n, width], and puts turned keys and values where the cache has their places.

        Args:
            qkv: [n, heads + 2 kv_heads, width].
            heads: Of queries.
            cos: Of the angles by which pairs (j, j + rotary_dim / 2) turn, float32 [n, rotary_dim / 2].
            sin: As cos.
            places: [n].
            keys: [kv_heads, capacity, width].
            values: As keys.
        """

    def gate(self, gate_up: Tensor) -> Tensor:
        """Returns silu(gate) * up [n, width] for gate_up [n, 2 width]."""


class TorchSteps:
    """`Steps` on any device."""

    def add_norm(self, states: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Steps`."""
        states = states if update is None else states + update
        wide = states.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
        return states, normed.to(states.dtype)

    def rotate(
        self, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """See `Steps`."""
        turned, v = qkv.split([qkv.shape[1] - len(keys), len(keys)], dim=1)
        half = cos.shape[-1]
        a, b, rest = turned[..., :half].float(), turned[..., half : 2 * half].float(), turned[..., 2 * half :]
        cos, sin = cos[:, None], sin[:, None]
        pair = [(a * cos - b * sin).to(qkv.dtype), (b * cos + a * sin).to(qkv.dtype)]
        turned = torch.cat([*pair, rest], dim=-1).transpose(0, 1)
        keys.index_copy_(1, places, turned[heads:])
        values.index_copy_(1, places, v.transpose(0, 1))
        return turned[:heads]

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `Steps`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up


class CardSteps:
    """`Steps` by the kernels of a card; activations are float16 or bfloat16, and everything is contiguous."""

    def __init__(self, kernels: ModuleType, device: torch.device) -> None:
        """Takes `_cuda`, or in tests `_simt`, and the device."""
        self._kernels = kernels
        self._device = device
        self._index = device.index if device.type == "cuda" else -1

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream) if self._device.type == "cuda" else 0

    def add_norm(self, states: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Steps`."""
        out = torch.empty_like(states)
        self._kernels.add_norm(
            states.data_ptr(), 0 if update is None else update.data_ptr(), weight.data_ptr(), out.data_ptr(),
            *states.shape, eps, NAMES[states.dtype], self._index, self._stream(),
        )  # fmt: skip
        return states, out

    def rotate(
        self, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """See `Steps`."""
        (count, _, width), (kv_heads, capacity, _) = qkv.shape, keys.shape
        queries = qkv.new_empty((heads, count, width))
        self._kernels.rotate(
            qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), places.data_ptr(), queries.data_ptr(), keys.data_ptr(),
            values.data_ptr(), count, heads, kv_heads, width, cos.shape[-1], capacity, NAMES[qkv.dtype], self._index,
            self._stream(),
        )  # fmt: skip
        return queries

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `Steps`."""
        count, both = gate_up.shape
        out = gate_up.new_empty((count, both // 2))
        self._kernels.gate(
            gate_up.data_ptr(), out.data_ptr(), count, both // 2, NAMES[gate_up.dtype], self._index, self._stream()
        )
        return out
