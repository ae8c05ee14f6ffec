"""What an `Engine` is made of: linears of one or several matrices, blocks, and caches of keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .. import _core
from ..arch.llama import Sizes
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError
from ..formats import INTEGER_TYPES
from ..gpu.cuda import CudaWeight
from ..gpu.dtypes import NAMES

Weights = Mapping[str, _core.Weight]
Vectors = Mapping[str, NDArray[np.float32]]
Part = CudaWeight | Tensor


@dataclass(frozen=True)
class Rows:
    """y = x W^T + b for the rows of one or several matrices, one after the other.

    Attributes:
        names: The matrices' canonical names.
        parts: The matrices, as few as could be made of them: packed, or dense [rows, cols].
        biases: As the parts; [rows], or None.
        low_rank: Branches U (V x) that are added: the first row of each, U [rows of one matrix, rank], V [rank, cols].
    """

    names: tuple[str, ...]
    parts: tuple[Part, ...]
    biases: tuple[Tensor | None, ...]
    low_rank: tuple[tuple[int, Tensor, Tensor], ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [n, rows] for x [n, cols]."""
        found = [
            part.linear(x, bias) if isinstance(part, CudaWeight) else functional.linear(x, part, bias)
            for part, bias in zip(self.parts, self.biases, strict=True)
        ]
        y = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        for first, u, v in self.low_rank:
            y[:, first : first + len(u)].addmm_(functional.linear(x, v), u.T)
        return y

    @property
    def nbytes(self) -> int:
        """Bytes of matrices that a call reads."""
        factors = sum(u.nbytes + v.nbytes for _, u, v in self.low_rank)
        return sum(part.nbytes for part in self.parts) + factors

    def kernels(self, dtype: torch.dtype) -> list[tuple[str, str]]:
        """Returns (name, kernel) pairs, for one token of a type."""
        parts = self.parts if len(self.parts) > 1 else self.parts * len(self.names)
        kernels = ["torch" if isinstance(part, Tensor) else part.kernel(dtype) for part in parts]
        return list(zip(self.names, kernels, strict=True))

    @property
    def table(self) -> Tensor | None:
        """The dense matrix, where it is one."""
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], Tensor) else None

    def clone(self) -> Rows:
        """Returns the same in memory of its own."""
        factors = tuple((first, u.clone(), v.clone()) for first, u, v in self.low_rank)
        return Rows(self.names, tuple(part.clone() for part in self.parts), self.biases, factors)


def linear_of(
    names: Sequence[str],
    weights: Weights,
    vectors: Vectors,
    device: torch.device,
    dtype: torch.dtype,
    kernels: ModuleType | None = None,
) -> Rows:
    """Moves matrices that have the same inputs to a device, and makes one of them where that is possible.

    Args:
        names: Which, by canonical name.
        weights: All matrices by canonical name; a low-rank branch of one that is asked for comes with it, dense.
        vectors: Where their biases are, if any.
        device: Of torch.
        dtype: Type of inputs and outputs; with float32 matrices are expanded.
        kernels: As for `CudaWeight`.

    Raises:
        GossamerError: a matrix has values that do not go with the inputs.
    """
    parts: list[Part] = []
    biases: list[Tensor | None] = []
    branches: list[tuple[int, Tensor, Tensor]] = []
    first = 0
    for name in names:
        weight = weights[name]
        if name + LOW_RANK_U in weights:
            u, v = (dense_weight(weights[name + end], device, dtype) for end in (LOW_RANK_U, LOW_RANK_V))
            branches.append((first, u, v))
        first += weight.rows
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
        return Rows(tuple(names), tuple(parts), tuple(biases), tuple(branches))
    if all(bias is None for bias in biases):
        return Rows(tuple(names), (one,), (None,), tuple(branches))
    none = [torch.zeros(weights[name].rows, device=device, dtype=dtype) for name in names]
    joined = torch.cat([a if b is None else b for a, b in zip(none, biases, strict=True)])
    return Rows(tuple(names), (one,), (joined,), tuple(branches))


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

    def __init__(self, sizes: Sizes, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self.capacity, self.length = capacity, 0
        shape = (sizes.layers, sizes.kv_heads, capacity, sizes.head_dim)
        # Zeros: what is not written yet is masked, and times zero it must not be NaN.
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.token, self.place = (torch.zeros(1, device=device, dtype=torch.int64) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None
