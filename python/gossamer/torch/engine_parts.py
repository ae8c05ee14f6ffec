"""What an `Engine` is made of: linears of one or several matrices, blocks, and caches of keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .. import _core
from ..config import DecoderConfig
from ..cuda import CudaWeight
from ..errors import GossamerError
from ..formats import INTEGER_TYPES
from .layout import NAMES

Weights = Mapping[str, _core.Weight]
Vectors = Mapping[str, NDArray[np.float32]]
Part = CudaWeight | Tensor


@dataclass(frozen=True)
class Rows:
    """y = x W^T + b for the rows of one or several matrices, one after the other.

    Attributes:
        parts: The matrices, as few as could be made of them: packed, or dense [rows, cols].
        biases: As the parts; [rows], or None.
    """

    parts: tuple[Part, ...]
    biases: tuple[Tensor | None, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [n, rows] for x [n, cols]."""
        found = [
            part.linear(x, bias) if isinstance(part, CudaWeight) else functional.linear(x, part, bias)
            for part, bias in zip(self.parts, self.biases, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    @property
    def nbytes(self) -> int:
        """Bytes of matrices that a call reads."""
        return sum(part.nbytes for part in self.parts)

    @property
    def table(self) -> Tensor | None:
        """The dense matrix, where it is one."""
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], Tensor) else None

    def clone(self) -> Rows:
        """Returns the same in memory of its own."""
        return Rows(tuple(part.clone() for part in self.parts), self.biases)


def linear_of(
    weights: Weights,
    vectors: Vectors,
    device: torch.device,
    dtype: torch.dtype,
    kernels: ModuleType | None = None,
) -> Rows:
    """Moves matrices that have the same inputs to a device, and makes one of them where that is possible.

    Args:
        weights: By canonical name.
        vectors: Where their biases are, if any.
        device: Of torch.
        dtype: Type of inputs and outputs; with float32 matrices are expanded.
        kernels: As for `CudaWeight`.

    Raises:
        GossamerError: a matrix has values that do not go with the inputs.
    """
    parts: list[Part] = []
    biases: list[Tensor | None] = []
    for name, weight in weights.items():
        bias = vectors.get(f"{name}.bias")
        biases.append(None if bias is None else torch.from_numpy(np.array(bias)).to(device, dtype))
        if dtype == torch.float32 or (weight.format == "dense" and weight.type not in INTEGER_TYPES):
            parts.append(dense_weight(weight, device, dtype))
        elif weight.type not in INTEGER_TYPES and weight.type != NAMES[dtype]:
            raise GossamerError(
                f"weight {name} has {weight.type} values, which a card does not multiply with {NAMES[dtype]} inputs; "
                f"pack the model with {NAMES[dtype]}, int8 or int4 values"
            )
        else:
            parts.append(CudaWeight(weight, device, kernels=kernels))
    one = _stacked(parts)
    if one is None:
        return Rows(tuple(parts), tuple(biases))
    if all(bias is None for bias in biases):
        return Rows((one,), (None,))
    sizes = [weight.rows for weight in weights.values()]
    none = [torch.zeros(size, device=device, dtype=dtype) for size in sizes]
    return Rows((one,), (torch.cat([a if b is None else b for a, b in zip(none, biases, strict=True)]),))


def _stacked(parts: list[Part]) -> Part | None:
    packed = [part for part in parts if isinstance(part, CudaWeight)]
    dense = [part for part in parts if isinstance(part, Tensor)]
    if len(parts) == 1:
        return parts[0]
    if not packed:
        return torch.cat(dense)
    return None if dense else CudaWeight.stack(packed)


def dense_weight(weight: _core.Weight, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns a packed matrix's stored numbers [rows, cols] on a device."""
    return torch.from_numpy(weight.unpack()).to(dtype).to(device)


@dataclass(frozen=True)
class Block:
    """The weights of one block; norms are float32 [hidden]."""

    attn_norm: Tensor
    qkv: Rows
    o: Rows
    mlp_norm: Tensor
    gate_up: Rows
    down: Rows

    def clone(self) -> Block:
        """Returns the same in memory of its own."""
        return Block(**{field.name: getattr(self, field.name).clone() for field in fields(self)})


class Cache:
    """Keys and values of one sequence at fixed addresses, and what its captured step reads and writes.

    Attributes:
        capacity: Tokens that it has room for.
        length: Tokens that it holds.
        keys: [layers, kv_heads, capacity, head_dim].
        values: As keys.
        token: [1], the step's input.
        place: [1], where it stands.
        graph: The captured step.
        logits: [1, vocab], its output.
    """

    logits: Tensor

    def __init__(self, config: DecoderConfig, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self.capacity, self.length = capacity, 0
        shape = (config.layers, config.kv_heads, capacity, config.head_dim)
        # Zeros: what is not written yet is masked, and times zero it must not be NaN.
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.token, self.place = (torch.zeros(1, device=device, dtype=torch.int64) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None
