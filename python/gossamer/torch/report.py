"""What `sparsify` tells: each linear layer with a reason, and where the rest of the model's bytes are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import nn

from ..tables import table
from .linear import SparseLinear


@dataclass(frozen=True)
class LayerReport:
    """What `sparsify` did with one linear layer.

    Attributes:
        name: Qualified name in the model.
        rows: Outputs.
        cols: Inputs.
        zeros: Fraction of stored values that are zero; None where nobody looked.
        format: How it is packed now; empty where it was left as it is.
        type: Type of the stored values, or of the dense weight.
        dense_bytes: Bytes of the dense weight.
        bytes: Bytes of the weight now.
        why: The reason, in words.
    """

    name: str
    rows: int
    cols: int
    zeros: float | None
    format: str
    type: str
    dense_bytes: int
    bytes: int
    why: str

    @property
    def packed(self) -> bool:
        """Whether the layer is a `SparseLinear` now."""
        return bool(self.format)


@dataclass(frozen=True)
class OtherWeight:
    """A parameter of two or more dimensions that is no linear layer's, and so stays as it is.

    Attributes:
        name: Qualified name in the model.
        shape: Its shape.
        bytes: Its size.
        kind: What it is: "stacked experts", "embeddings", "convolutions", "attention projections", or "other weights".
    """

    name: str
    shape: tuple[int, ...]
    bytes: int
    kind: str


@dataclass(frozen=True)
class Report:
    """What `sparsify` did, layer by layer; `print(report)` shows a table.

    Attributes:
        layers: Every linear layer; what the report iterates over.
        others: Every other large parameter.
        model_dense_bytes: Bytes of all parameters and buffers of the model before, each counted once.
        model_bytes: The same now.
    """

    layers: tuple[LayerReport, ...] = field(default_factory=tuple)
    others: tuple[OtherWeight, ...] = field(default_factory=tuple)
    model_dense_bytes: int = 0
    model_bytes: int = 0

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def packed(self) -> tuple[LayerReport, ...]:
        """The layers that are packed now."""
        return tuple(layer for layer in self.layers if layer.packed)

    def __str__(self) -> str:
        header = ["name", "format", "type", "shape", "zeros", "bytes", "why"]
        rows = [
            [
                layer.name,
                layer.format or "-",
                layer.type,
                f"{layer.rows} x {layer.cols}",
                "" if layer.zeros is None else f"{layer.zeros:.1%}",
                f"{layer.bytes:,}",
                layer.why,
            ]
            for layer in self.layers
        ]
        before, after = (sum(getattr(layer, key) for layer in self.layers) for key in ("dense_bytes", "bytes"))
        lines = [
            f"{table(header, rows, left=3, tail=1)}\n",
            f"{len(self.packed)} of {len(self.layers)} linear layers packed, {before:,} bytes before, {after:,} now",
        ]
        if self.others:
            size = sum(other.bytes for other in self.others)
            kinds = "; ".join(kinds_told(self.others))
            lines.append(f"left alone, since no linear layer has them: {_tensors(self.others, size)}: {kinds}")
        lines.append(f"whole model: {self.model_dense_bytes:,} bytes before, {self.model_bytes:,} now")
        return "\n".join(lines)


def _tensors(others: Iterable[OtherWeight], size: int) -> str:
    count = len(tuple(others))
    return f"{size:,} bytes in {count} tensor{'s' if count > 1 else ''}"


def kinds_told(others: Iterable[OtherWeight]) -> list[str]:
    """A line for each kind, the largest first, with the name of its largest tensor."""
    by_kind: dict[str, list[OtherWeight]] = {}
    for other in others:
        by_kind.setdefault(other.kind, []).append(other)
    sizes = {kind: sum(other.bytes for other in members) for kind, members in by_kind.items()}
    return [
        f"{kind} ({_tensors(by_kind[kind], sizes[kind])}, as {max(by_kind[kind], key=lambda other: other.bytes).name})"
        for kind in sorted(sizes, key=lambda kind: -sizes[kind])
    ]


def other_weights(model: nn.Module, linears: Iterable[nn.Module]) -> tuple[OtherWeight, ...]:
    """Returns the large parameters that none of a model's linear layers has.

    Args:
        model: The model.
        linears: Its linear layers, dense ones.
    """
    seen = {id(parameter) for linear in linears for parameter in linear.parameters(recurse=False)}
    found = []
    for prefix, module in model.named_modules():
        if isinstance(module, SparseLinear):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                name = f"{prefix}.{key}" if prefix else key
                size = parameter.numel() * parameter.element_size()
                found.append(OtherWeight(name, tuple(parameter.shape), size, _kind(name, module)))
    return tuple(found)


def _kind(name: str, module: nn.Module) -> str:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embeddings"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolutions"
    if isinstance(module, nn.MultiheadAttention):
        return "attention projections"
    if "expert" in f"{name} {type(module).__name__}".lower():
        return "stacked experts"
    return "other weights"


def model_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers of a model, shared ones once."""
    tensors = {id(tensor): tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
