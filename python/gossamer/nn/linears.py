"""How projections are computed: modules with gradients, or packed matrices of which several are one call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .. import _core
from ..arch.sources import parts_of
from ..arch.spec import Head, Linear, Transformer
from ..checkpoints.branches import deltas_of
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError
from ..formats import INTEGER_TYPES
from ..gpu.cuda import CudaWeight
from ..gpu.dtypes import NAMES
from .gradients import Products

Weights = Mapping[str, _core.Weight]
Vectors = Mapping[str, NDArray[np.float32]]
Part = CudaWeight | Tensor


class Projection(Protocol):
    """Linears that read the same inputs."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Their modules by short name, for the block to have as its own; none where no parameters are."""

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """Returns their outputs [..., rows] for x [..., cols], one by one or side by side in fewer tensors."""


class Linears(Protocol):
    """What makes projections and vectors."""

    def group(self, linears: Mapping[str, Linear], /) -> Projection:
        """Makes linears, by canonical name, that read the same inputs."""

    def vector(self, name: str, width: int, /) -> nn.Parameter:
        """Returns a norm's vector by canonical name."""

    def table(self, name: str, rows: int, cols: int, /) -> nn.Embedding:
        """Returns a matrix of which rows are looked up, by canonical name."""

    def ends(self, config: Transformer, /) -> tuple[nn.Embedding, Projection]:
        """Returns embedding and head."""


class Separate:
    """A module for each linear.

    Attributes:
        modules: They, by short name.
    """

    def __init__(self, linears: Mapping[str, Linear]) -> None:
        """Makes modules with weights that torch initializes."""
        self.modules = {
            parts_of(name)[1]: nn.Linear(each.cols, each.rows, bias=each.bias) for name, each in linears.items()
        }

    def __call__(self, x: Tensor) -> list[Tensor]:
        """See `Projection`; training in a type of fewer bits has them side by side, of one product."""
        modules, kind = list(self.modules.values()), x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))  # once for all
            if torch.is_grad_enabled() and not any(module.bias is not None for module in modules):
                together: Tensor = Products.apply(x, *(module.weight for module in modules))  # type: ignore[no-untyped-call]
                return [together]
        return [module(x) for module in modules]


class Tied:
    """The head whose matrix is the embedding.

    Attributes:
        modules: One with the bias alone, where there is a bias.
    """

    def __init__(self, embed: nn.Embedding, bias: bool) -> None:
        """Takes the embedding, and whether a bias is added."""
        self._embed = embed
        self.modules: Mapping[str, nn.Module] = {"head": nn.Module()} if bias else {}
        for module in self.modules.values():
            module.register_parameter("bias", nn.Parameter(torch.zeros(embed.num_embeddings)))

    def __call__(self, x: Tensor) -> list[Tensor]:
        """See `Projection`."""
        bias = self.modules["head"].get_parameter("bias") if self.modules else None
        return [functional.linear(x, self._embed.weight, bias)]


class Modules:
    """`Linears` of torch's modules, whose parameters are trained or loaded."""

    def group(self, linears: Mapping[str, Linear]) -> Separate:
        """See `Linears`."""
        return Separate(linears)

    def vector(self, _: str, width: int) -> nn.Parameter:
        """See `Linears`; ones, until it is loaded."""
        return nn.Parameter(torch.ones(width))

    def table(self, _: str, rows: int, cols: int) -> nn.Embedding:
        """See `Linears`."""
        return nn.Embedding(rows, cols)

    def ends(self, config: Transformer) -> tuple[nn.Embedding, Projection]:
        """See `Linears`."""
        embed = self.table("embed", config.vocab, config.embedding.project or config.hidden)
        return embed, Tied(embed, way_out(config).bias) if config.tied else Separate({"head": _head(config)})


class Packed:
    """`Linears` of packed matrices on a device."""

    def __init__(
        self,
        weights: Weights,
        vectors: Vectors,
        device: torch.device,
        dtype: torch.dtype,
        kernels: ModuleType | None = None,
    ) -> None:
        """Takes what `linear_of` does."""
        self._weights, self._vectors = weights, vectors
        self._device, self._dtype, self._kernels = device, dtype, kernels

    def group(self, linears: Mapping[str, Linear]) -> Rows:
        """See `Linears`."""
        return self._rows(list(linears), self._vectors)

    def vector(self, name: str, width: int) -> nn.Parameter:
        """See `Linears`; of float32."""
        values = torch.from_numpy(np.array(self._vectors[name])).to(self._device)
        return nn.Parameter(values.view(width), requires_grad=False)

    def table(self, name: str, rows: int, cols: int) -> nn.Embedding:
        """See `Linears`."""
        values = dense_weight(self._weights[name], self._device, self._dtype)
        table: nn.Embedding = nn.Embedding.from_pretrained(values.view(rows, cols))
        return table

    def ends(self, config: Transformer) -> tuple[nn.Embedding, Rows]:
        """See `Linears`. One table is both where the head is tied and dense."""
        name = "embed" if config.tied else "head"
        head = self._rows([name], {f"{name}.bias": self._vectors["head.bias"]} if way_out(config).bias else {})
        if config.tied and head.table is not None:
            return nn.Embedding.from_pretrained(head.table), head
        return self.table("embed", config.vocab, config.embedding.project or config.hidden), head

    def _rows(self, names: Sequence[str], vectors: Vectors) -> Rows:
        return linear_of(names, self._weights, vectors, self._device, self._dtype, self._kernels)


class Copies:
    """`Linears` of a network's first block for each block of a deeper one, in memory of their own: for benches."""

    def __init__(
        self,
        network: nn.Module,
        first: Mapping[tuple[str, ...], Projection],
        ends: Mapping[tuple[str, ...], Projection],
    ) -> None:
        """Takes the network, the linears of its first block, and those outside the blocks."""
        self._network, self._first, self._ends = network, first, ends

    def group(self, linears: Mapping[str, Linear]) -> Rows:
        """See `Linears`."""
        names = tuple(parts_of(name)[1] for name in linears)
        rows = self._ends[names] if names in self._ends else self._first[names]
        assert isinstance(rows, Rows)
        return rows.clone()

    def vector(self, name: str, width: int) -> nn.Parameter:
        """See `Linears`."""
        own = re.sub(r"^layers\.\d+\.", "layers.0.", name)
        values = self._network.get_parameter(parameter_name(own)).clone()
        return nn.Parameter(values.view(width), requires_grad=False)

    def table(self, name: str, _rows: int, _cols: int) -> nn.Embedding:
        """See `Linears`; it is shared."""
        table = self._network.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        return table

    def ends(self, config: Transformer) -> tuple[nn.Embedding, Projection]:
        """See `Linears`; these are shared."""
        return self.table("embed", config.vocab, config.embedding.project or config.hidden), self._ends["head",]


def _head(config: Transformer) -> Linear:
    head = way_out(config)
    return Linear(config.vocab, head.project or config.hidden, head.bias)


def way_out(config: Transformer) -> Head:
    """Returns the head of a description.

    Raises:
        GossamerError: it has none.
    """
    if config.head is None:
        raise GossamerError("transformer: head None is nothing that torch decoders know")
    return config.head


def parameter_name(canonical: str) -> str:
    """Returns what a tensor of `gossamer.arch` is called among a network's parameters."""
    return canonical if canonical.endswith(".bias") else f"{canonical}.weight"


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

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """None: nothing here is trained."""
        return {}

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Returns one tensor [n, rows] for x [n, cols]."""
        found = [
            part.linear(x, bias) if isinstance(part, CudaWeight) else functional.linear(x, part, bias)
            for part, bias in zip(self.parts, self.biases, strict=True)
        ]
        y = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        for first, u, v in self.low_rank:
            y[:, first : first + len(u)].addmm_(functional.linear(x, v), u.T)
        return [y]

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
        if deltas_of(name, weights):
            raise GossamerError(f"weight {name} has parallel branches, which do not run on a GPU")
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
                f"weight {name} has {weight.type} values, which a GPU does not multiply with {NAMES[dtype]} inputs; "
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
