"""What a block computes between its linears by kernels of a GPU, in a step of fixed shapes and addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from ..arch import spec
from ..errors import GossamerError
from ..gpu.counters import counters_of
from ..gpu.cuda import number_of, stream_of
from ..gpu.dtypes import NAMES
from .check import unknown
from .functions import Scores, joined, merge_heads
from .memory import Reach, Step
from .ops import AddNorm, Between, Route, TorchOps, attention_scale

_MOST_HEADS = 256
_NORMS = frozenset({"rms"})  # that there are kernels for
_ACTIVATIONS = frozenset({"silu"})


class Kernels:
    """The kernels over torch's tensors; activations are float16 or bfloat16, and everything is contiguous.

    None of them waits or asks the GPU for anything, so that graphs may capture them.
    """

    def __init__(self, kernels: ModuleType, device: torch.device, splits: int = 0) -> None:
        """Takes `_cuda`, or in tests `_simt`, the device, and shares of a cache for blocks; 0 chooses for the GPU."""
        self._kernels = kernels
        self._device = device
        self._index = number_of(device)
        self._splits = splits
        self._multiprocessors = kernels.device_facts(self._index)["multiprocessors"] if self._index >= 0 else 1
        counters_of(device).reserve(_MOST_HEADS)

    def add_norm(self, states: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Returns states + update [n, width], written over the states, and that with rows of unit mean square.

        Args:
            states: [n, width].
            update: As the states, or None.
            weight: float32 [width], times which the rows are returned.
            eps: Added to the mean square.
        """
        out = torch.empty_like(states)
        self._kernels.add_norm(
            states.data_ptr(), 0 if update is None else update.data_ptr(), weight.data_ptr(), out.data_ptr(),
            *states.shape, eps, NAMES[states.dtype], self._index, stream_of(self._device),
        )  # fmt: skip
        return states, out

    def rotate(
        self, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Returns turned queries [heads, n, width]; puts turned keys and values where the cache has their positions.

        Args:
            qkv: [n, heads + 2 kv_heads, width].
            heads: Of queries.
            cos: Of the angles by which pairs (j, j + rotary_dim / 2) turn, float32 [n, rotary_dim / 2].
            sin: As cos.
            positions: [n].
            keys: [kv_heads, capacity, width].
            values: As keys.
        """
        (count, _, width), (kv_heads, capacity, _) = qkv.shape, keys.shape
        queries = qkv.new_empty((heads, count, width))
        self._kernels.rotate(
            qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), positions.data_ptr(), queries.data_ptr(), keys.data_ptr(),
            values.data_ptr(), count, heads, kv_heads, width, cos.shape[-1], capacity, NAMES[qkv.dtype], self._index,
            stream_of(self._device),
        )  # fmt: skip
        return queries

    def can_attend(self, heads: int, width: int) -> bool:
        """Whether `attend` is there for so many heads of such a width."""
        return width <= self._kernels.MAX_HEAD_WIDTH and heads <= _MOST_HEADS

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, position: Tensor, scale: float) -> Tensor:
        """Returns one token's attention [1, heads * width] over a cache up to its position.

        Args:
            queries: [heads, 1, width].
            keys: [kv_heads, capacity, width].
            values: As keys.
            position: [1].
            scale: Factor on the products of queries and keys.
        """
        (heads, _, width), (kv_heads, capacity, _) = queries.shape, keys.shape
        # About two blocks a multiprocessor; by nothing that changes, so that a token is the same in a longer cache.
        splits = self._splits or max(1, min(32, 2 * self._multiprocessors // kv_heads))
        shape = (splits, kv_heads * (heads // kv_heads + 3), width + 2)
        partials = torch.empty(shape, dtype=torch.float32, device=queries.device)
        out = queries.new_empty((1, heads * width))
        stream = stream_of(self._device)
        self._kernels.attend(
            queries.data_ptr(), keys.data_ptr(), values.data_ptr(), position.data_ptr(), out.data_ptr(), heads,
            kv_heads, width, capacity, scale, splits, partials.data_ptr(),
            counters_of(self._device).address(stream, heads), NAMES[queries.dtype], self._index, stream,
        )  # fmt: skip
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """Returns silu(gate) * up [n, width] for gate_up [n, 2 width]."""
        count, both = gate_up.shape
        out = gate_up.new_empty((count, both // 2))
        self._kernels.gate(
            gate_up.data_ptr(), out.data_ptr(), count, both // 2, NAMES[gate_up.dtype], self._index,
            stream_of(self._device),
        )  # fmt: skip
        return out


class CudaOps(TorchOps):
    """`Ops` by kernels where there is one for a part; what says more than they know is torch's, or refused there.

    Memory is a `Reach`. The attention of several tokens is torch's.

    Attributes:
        kernels: They.
    """

    def __init__(self, kernels: Kernels) -> None:
        """Takes the kernels."""
        self.kernels = kernels

    def norm(self, described: spec.Norm) -> AddNorm:
        """See `Ops`."""
        if described.kind not in _NORMS or unknown(described, ("kind", "eps")):
            return super().norm(described)
        eps = described.eps
        return lambda states, update, weight: self.kernels.add_norm(states, update, weight, eps)

    def attention(
        self, described: spec.Attention, slot: int, angles: int | None, modules: Mapping[str, nn.Module]
    ) -> Between:
        """See `Ops`."""
        fields = ("heads", "kv_heads", "head_dim", "scale", "positions", "biases")
        if angles is None or unknown(described, fields) or unknown(described.positions, ("inv_freq", "scale")):
            return super().attention(described, slot, angles, modules)
        heads, width, scale = described.heads, described.head_dim, attention_scale(described)
        scores = Scores(scale)
        alone = self.kernels.can_attend(heads, width)

        def attend(outputs: Sequence[Tensor], step: Step) -> Tensor:
            reach, qkv = step.memory, joined(outputs)
            assert isinstance(reach, Reach)
            keys, values = reach.cache.keys[slot], reach.cache.values[slot]
            cos, sin = step.angles[angles]
            qkv = qkv.view(len(qkv), -1, width)
            queries = self.kernels.rotate(qkv, heads, cos, sin, step.positions, keys, values)
            if alone and len(qkv) == 1:
                return self.kernels.attend(queries, keys, values, step.positions, scale)
            return merge_heads(reach.look(slot, queries, scores))

        return attend

    def mlp(self, described: spec.Mlp) -> Between:
        """See `Ops`."""
        if described.activation not in _ACTIVATIONS or unknown(described, ("width", "activation", "biases")):
            return super().mlp(described)
        return lambda outputs, _: self.kernels.gate(joined(outputs))

    def routing(self, described: spec.Experts) -> Route:
        """Refuses: which experts a token goes through is not known before it runs, and a step has fixed shapes."""
        raise GossamerError(f"{described.part}: decoders on GPUs do not know them; run on the CPU")
