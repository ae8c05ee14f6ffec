"""What pruning makes: a checkpoint in memory, and a report of how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Checkpoint
from ..checkpoints.lora import LowRank
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .. import _core
    from ..arch.sources import Source

REPORT_FILE = "gossamer_prune.json"


@dataclass(frozen=True)
class Report:
    """What a run of `prune` did; `gossamer_prune.json` in the result holds the same fields.

    Attributes:
        source: Name of the checkpoint that was pruned.
        method: One of `METHODS`.
        sparsity: Fraction of zeros asked for, over all pruned matrices.
        pattern: (N, M) where that was asked for.
        allocation: How it was divided among them; one of `ALLOCATIONS`.
        weights: "stored", "int4" where what stays was rounded in the same sweep, or "auto": see `types`.
        group: Inputs that share a scale of int4 values.
        rank: Of the low-rank branches; 0 for none.
        bits: Bits a weight that were asked for in place of zeros; 0 for none.
        types: With `bits`, what each matrix is for: "int4", which it was rounded to, or "int8".
        ranks: With `bits`, the rank of each matrix's branch.
        calibration: Where the calibration windows come from, or pairs; empty for a method that needs none.
        windows: Calibration windows used.
        length: Tokens of each.
        pairs: Of what an encoder reads and what is written about it, that were used instead.
        seed: Of the windows' places or samples.
        reached: Fraction of zeros over all pruned matrices.
        layers: Fraction of zeros of each pruned matrix, by its name in the checkpoint.
        few_tokens: The calibration tokens that came to matrices of experts which were so few that magnitude decided,
            by name.
        seconds: Wall-clock time.
    """

    source: str
    method: str
    sparsity: float
    pattern: tuple[int, int] | None
    allocation: str
    weights: str
    group: int
    rank: int
    bits: float
    types: dict[str, str]
    ranks: dict[str, int]
    calibration: str
    windows: int
    length: int
    pairs: int
    seed: int
    reached: float
    layers: dict[str, float]
    few_tokens: dict[str, int]
    seconds: float

    def write(self, path: Path) -> None:
        """Writes the report as JSON."""
        values = asdict(self)
        values["pattern"] = None if self.pattern is None else "{}:{}".format(*self.pattern)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class PrunedCheckpoint(Checkpoint):
    """A checkpoint with some of its matrices pruned.

    Attributes:
        report: What was done.
    """

    def __init__(
        self,
        source: Checkpoint,
        weights: Mapping[Source, _core.Weight],
        low_rank: Mapping[str, LowRank],
        report: Report,
    ) -> None:
        """Puts pruned matrices in place of those of `source`, by where they lie there."""
        self.path = source.path
        self.config = source.config
        self.low_rank = low_rank
        self.report = report
        self._source = source
        self._weights: dict[str, dict[Source, _core.Weight]] = {}
        for place, weight in weights.items():
            self._weights.setdefault(place.tensor, {})[place] = weight

    def names(self) -> list[str]:  # noqa: D102 - as in the base class, as are those below
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        return self._source.shape(name)

    def dtype(self, name: str) -> str:  # noqa: D102
        types = [weight.type for weight in self._weights.get(name, {}).values()]
        return types[0] if types else stored_type(self._source, name)

    def tensor(self, name: str) -> NDArray[np.float32]:  # noqa: D102
        inside = self._weights.get(name)
        if inside is None:
            return self._source.tensor(name)
        if len(inside) == 1 and next(iter(inside)).whole:
            return next(iter(inside.values())).unpack()
        values = np.array(self._source.tensor(name))
        for place, weight in inside.items():
            place.write(values, weight.unpack())
        return values

    def tokenizer(self) -> Tokenizer:  # noqa: D102
        return self._source.tokenizer()

    def copy_companions(self, dst: Path) -> None:  # noqa: D102
        self._source.copy_companions(dst)


def stored_type(source: Checkpoint, name: str) -> str:
    """Returns the type that a tensor has after pruning: its own, and f32 for those of a quantized source."""
    dtype = source.dtype(name)
    return dtype if dtype in ("f32", "f16", "bf16") else "f32"
