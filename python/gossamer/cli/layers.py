"""Per-layer rows of a model's matrices, as `inspect` and `convert --dry-run` show them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..arch.spec import TABLES
from ..formats import INTEGER_TYPES, TYPES, expected_shape
from ..tables import table

if TYPE_CHECKING:
    from ..arch.spec import Transformer
    from ..packing.folder import Entry


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
        share: The part of it that a token reads.
        beside: The weights of all matrices of its model, which say whether they stay in the last-level cache; None
            where nobody knows.
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
    share: float = 1.0
    beside: int | None = None

    @classmethod
    def of(cls, name: str, entry: Entry) -> Layer:
        """Describes a packed matrix."""
        scaled = entry.type in INTEGER_TYPES
        return cls(
            name=name,
            rows=entry.rows,
            cols=entry.cols,
            zeros=1 - entry.nnz / (entry.rows * entry.cols),
            pattern="{}:{}".format(*entry.pattern) if entry.pattern else "",
            format=entry.format,
            type=f"{entry.type}/{entry.group or 'row'}" if scaled else entry.type,
            bytes=entry.nbytes,
            why=entry.reason,
        )

    @cached_property
    def times(self) -> tuple[float, float] | None:
        """Seconds that a token needs for it here, and would need if it were dense, as far as this machine is known.

        None for types that packed weights do not have.
        """
        from ..packing.planner import token_seconds

        type_ = self.type.partition("/")[0]
        if type_ not in TYPES:
            return None
        most, _, length = self.pattern.partition(":")
        pattern = (int(most), int(length)) if length else None
        shape = expected_shape(self.rows, self.cols, round((1 - self.zeros) * self.rows * self.cols), pattern)
        dense = token_seconds(shape, "dense", type_, weights=self.beside)
        if self.format == "dense":
            return dense, dense
        return token_seconds(shape, self.format, type_, pattern, self.beside), dense

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
            **({"seconds": self.times[0], "seconds_dense": self.times[1]} if self.times else {}),
            **({"why": self.why} if self.why else {}),
        }


def within(layers: list[Layer], config: Transformer) -> list[Layer]:
    """Says of each matrix what part of it a token reads, of an encoder beside a decoder none, and how large all are."""
    return [replace(layer, share=config.share(layer.name), beside=config.positions) for layer in layers]


def totals(layers: list[Layer]) -> dict[str, Any]:
    """Sums over matrices: how many, their positions, zeros, bytes, bits a position and times of a token."""
    positions = sum(layer.rows * layer.cols for layer in layers)
    size = sum(layer.bytes for layer in layers)
    zeros = sum(layer.zeros * layer.rows * layer.cols for layer in layers)
    return {
        "matrices": len(layers),
        "positions": positions,
        "zeros": zeros / positions if positions else 0.0,
        "bytes": size,
        "bits": 8 * size / positions if positions else 0.0,
        **_times(layers),
    }


def _times(layers: list[Layer]) -> dict[str, float]:
    """What a token needs for all matrices that it goes through: of an embedding that is no head it reads one row."""
    untied = any(layer.name == "head" for layer in layers)
    tables = (*TABLES, "embed") if untied else TABLES
    read = [layer for layer in layers if layer.share and layer.name not in tables]
    known = [(layer.share * time[0], layer.share * time[1]) for layer in read if (time := layer.times)]
    if not known or len(known) < len(read):
        return {}
    mine, dense = (sum(column) for column in zip(*known, strict=True))
    return {"seconds": mine, "seconds_dense": dense}


def summary(layers: list[Layer]) -> str:
    """Returns the totals in a line, and in another what tokens take at least."""
    total = totals(layers)
    line = (
        f"{total['matrices']} matrices, {total['positions']:,} positions, {total['zeros']:.1%} zeros, "
        f"{total['bits']:.2f} bits a position, {total['bytes']:,} bytes"
    )
    if "seconds" in total:
        mine, dense = 1 / total["seconds"], 1 / total["seconds_dense"]
        line += f"\nweights alone let a token take {1e3 / mine:.2f} ms here, {mine:.0f} tokens/s (dense: {dense:.0f})"
    return line


def layer_table(layers: list[Layer]) -> str:
    """Lays the matrices out as a table with a line of totals below."""
    reasons = any(layer.why for layer in layers)
    header = ["name", "format", "type", "pattern", "shape", "zeros", "bits", "bytes", "µs", "µs dense"]
    header += ["why"] if reasons else []
    rows = [
        [
            layer.name,
            layer.format,
            layer.type,
            layer.pattern,
            f"{layer.rows} x {layer.cols}",
            f"{layer.zeros:.1%}",
            f"{layer.bits:.2f}",
            f"{layer.bytes:,}",
            *(f"{1e6 * time:.1f}" for time in layer.times or ()),
            *([] if layer.times else ["", ""]),
            *([layer.why] if reasons else []),
        ]
        for layer in layers
    ]
    return f"{table(header, rows, left=4, tail=int(reasons))}\n\n{summary(layers)}"
