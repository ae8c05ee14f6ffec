"""What an `Engine` does between linears and attention: in plain torch, and as three kernels of a card."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..gpu.counters import counters_of
from ..gpu.cuda import number_of, stream_of
from ..gpu.dtypes import NAMES
from .functions import rms_norm, rotate

_MOST_HEADS = 256


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

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, places: Tensor, seen: int) -> Tensor:
        """Returns causal attention [n, heads * width] of queries [heads, n, width] over a cache.

        Args:
            queries: Of tokens at these places.
            keys: [kv_heads, capacity, width].
            values: As keys.
            places: [n].
            seen: Places of the cache to look at, at least those up to the last token.
        """

    def gate(self, gate_up: Tensor) -> Tensor:
        """Returns silu(gate) * up [n, width] for gate_up [n, 2 width]."""


class TorchSteps:
    """`Steps` on any device."""

    def add_norm(self, states: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Steps`."""
        states = states if update is None else states + update
        return states, rms_norm(states, weight, eps)

    def rotate(
        self, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """See `Steps`."""
        turned, v = qkv.split([qkv.shape[1] - len(keys), len(keys)], dim=1)
        turned = rotate(turned, cos[:, None], sin[:, None]).transpose(0, 1)
        keys.index_copy_(1, places, turned[heads:])
        values.index_copy_(1, places, v.transpose(0, 1))
        return turned[:heads]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, places: Tensor, seen: int) -> Tensor:
        """See `Steps`. The heads that share keys are further queries of one head, so that nothing is repeated."""
        (heads, count, width), kv_heads = queries.shape, len(keys)
        mask = torch.arange(seen, device=places.device) <= places[:, None]
        mask = mask.repeat(heads // kv_heads, 1)[None, None]
        asked = queries.reshape(1, kv_heads, -1, width)
        near = keys[None, :, :seen], values[None, :, :seen]
        mixed = functional.scaled_dot_product_attention(asked, *near, attn_mask=mask)
        return mixed.reshape(heads, count, width).transpose(0, 1).reshape(count, -1)

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `Steps`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up


class CardSteps(TorchSteps):
    """`Steps` by the kernels of a card; activations are float16 or bfloat16, and everything is contiguous.

    The attention of several tokens is torch's.
    """

    def __init__(self, kernels: ModuleType, device: torch.device, splits: int = 0) -> None:
        """Takes `_cuda`, or in tests `_simt`, the device, and shares of a cache for blocks; 0 chooses for the card."""
        self._kernels = kernels
        self._device = device
        self._index = number_of(device)
        self._splits = splits
        self._multiprocessors = kernels.device_facts(self._index)["multiprocessors"] if self._index >= 0 else 1
        counters_of(device).reserve(_MOST_HEADS)

    def add_norm(self, states: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Steps`."""
        out = torch.empty_like(states)
        self._kernels.add_norm(
            states.data_ptr(), 0 if update is None else update.data_ptr(), weight.data_ptr(), out.data_ptr(),
            *states.shape, eps, NAMES[states.dtype], self._index, stream_of(self._device),
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
            stream_of(self._device),
        )  # fmt: skip
        return queries

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, places: Tensor, seen: int) -> Tensor:
        """See `Steps`."""
        (heads, count, width), (kv_heads, capacity, _) = queries.shape, keys.shape
        if count > 1 or width > self._kernels.MAX_HEAD_WIDTH or heads > _MOST_HEADS:
            return super().attend(queries, keys, values, places, seen)
        # About two blocks a multiprocessor; by nothing that changes, so that a token is the same in a longer cache.
        splits = self._splits or max(1, min(32, 2 * self._multiprocessors // kv_heads))
        shape = (splits, kv_heads * (heads // kv_heads + 3), width + 2)
        partials = torch.empty(shape, dtype=torch.float32, device=queries.device)
        out = queries.new_empty((1, heads * width))
        stream = stream_of(self._device)
        self._kernels.attend(
            queries.data_ptr(), keys.data_ptr(), values.data_ptr(), places.data_ptr(), out.data_ptr(), heads, kv_heads,
            width, capacity, width**-0.5, splits, partials.data_ptr(), counters_of(self._device).address(stream, heads),
            NAMES[queries.dtype], self._index, stream,
        )  # fmt: skip
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `Steps`."""
        count, both = gate_up.shape
        out = gate_up.new_empty((count, both // 2))
        self._kernels.gate(
            gate_up.data_ptr(),
            out.data_ptr(),
            count,
            both // 2,
            NAMES[gate_up.dtype],
            self._index,
            stream_of(self._device),
        )
        return out
