"""Per-layer rows of a model's matrices, as `inspect` and `convert --dry-run` show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..tables import table

if TYPE_CHECKING:
    from .. import _core


@dataclass(frozen=True)
class Layer:
    """One matrix.

    Attributes:
        name: Canonical name, or its name in the checkpoint.
        rows: Outputs.
        cols: Inputs.
        zeros: Fraction of zeros.
        pattern: N:M that every row keeps to; empty where there is none.
        format: How it is stored.
        type: Type of its values, with the inputs per scale.
        bytes: What it takes.
        why: Why it is stored so; empty where nothing is to be said.
    """

    name: str
    rows: int
    cols: int
    zeros: float
    pattern: str
    format: str
    type: str
    bytes: int
    why: str = ""

    @classmethod
    def of_weight(cls, name: str, weight: _core.Weight, why: str = "") -> Layer:
        """Describes a packed matrix."""
        scaled = weight.type in ("int8", "int4")
        return cls(
            name=name,
            rows=weight.rows,
            cols=weight.cols,
            zeros=1 - weight.nnz / (weight.rows * weight.cols),
            pattern="{}:{}".format(*weight.pattern) if weight.pattern else "",
            format=weight.format,
            type=f"{weight.type}/{weight.group or 'row'}" if scaled else weight.type,
            bytes=weight.nbytes,
            why=why,
        )

    @property
    def bits(self) -> float:
        """Bits a position, zeros included."""
        return 8 * self.bytes / (self.rows * self.cols)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        return {
            "name": self.name,
            "shape": [self.rows, self.cols],
            "zeros": self.zeros,
            "pattern": self.pattern or None,
            "format": self.format,
            "type": self.type,
            "bytes": self.bytes,
            "bits": self.bits,
            **({"why": self.why} if self.why else {}),
        }


def totals(layers: list[Layer]) -> dict[str, Any]:
    """Sums over matrices: how many, their positions, zeros, bytes and bits a position."""
    positions = sum(layer.rows * layer.cols for layer in layers)
    size = sum(layer.bytes for layer in layers)
    zeros = sum(layer.zeros * layer.rows * layer.cols for layer in layers)
    return {
        "matrices": len(layers),
        "positions": positions,
        "zeros": zeros / positions if positions else 0.0,
        "bytes": size,
        "bits": 8 * size / positions if positions else 0.0,
    }


def summary(layers: list[Layer]) -> str:
    """Returns the totals in one line."""
    total = totals(layers)
    return (
        f"{total['matrices']} matrices, {total['positions']:,} positions, {total['zeros']:.1%} zeros, "
        f"{total['bits']:.2f} bits a position, {total['bytes']:,} bytes"
    )


def layer_table(layers: list[Layer]) -> str:
    """Lays the matrices out as a table with a line of totals below."""
    reasons = any(layer.why for layer in layers)
    header = ["name", "format", "type", "pattern", *(["why"] if reasons else []), "shape", "zeros", "bits", "bytes"]
    rows = [
        [
            layer.name,
            layer.format,
            layer.type,
            layer.pattern,
            *([layer.why] if reasons else []),
            f"{layer.rows} x {layer.cols}",
            f"{layer.zeros:.1%}",
            f"{layer.bits:.2f}",
            f"{layer.bytes:,}",
        ]
        for layer in layers
    ]
    return f"{table(header, rows, left=5 if reasons else 4)}\n\n{summary(layers)}"
