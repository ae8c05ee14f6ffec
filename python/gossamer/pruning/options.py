"""What a run of `prune` is asked for, checked in one place."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..errors import GossamerError
from ..files import read_json
from ..formats import STORED, check_group
from ..kinds import check_kinds
from ..machine.threads import check_threads
from ..text.calibration import WINDOWS
from .allocation import ALLOCATIONS
from .masks import Target
from .methods import CALIBRATED, DEFAULT_METHOD, METHODS

_log = logging.getLogger("gossamer")

_GROUP = 64
AUTO = "auto"  # of `weights`: chosen for each matrix
CALIBRATING = ("calibration", "windows", "length", "seed")
"""Options that methods which read no text have no use for."""


@dataclass(frozen=True)
class PruneOptions:
    """What `prune` is to do.

    Attributes:
        method: "admm", "sparsegpt", "wanda" or "magnitude".
        sparsity: Fraction of zeros over all matrices, at least 0 and below 1.
        pattern: (N, M): keep N of every M consecutive inputs, instead of `sparsity`.
        bits: Bits a weight that the matrices may take when they are packed, scales and branches among them, instead of
            `sparsity`: zeros, type and rank of each are searched for such that predictions move least.
        allocation: How `sparsity` is divided among the matrices: "uniform", "owl" (by outliers, Yin et al. 2023) or
            "divergence" (by what predictions lose when a part alone is pruned); or the `gossamer_prune.json` of another
            run, which says the zeros of each in place of `sparsity`. By default "divergence" where the method is
            calibrated and no pattern is given, otherwise "uniform".
        weights: "int4" also rounds what stays to values that `convert` stores as int4 with the same `group` exactly,
            layer by layer with the pruning, which loses far less than rounding afterwards; not for "magnitude". "auto"
            goes with `bits`: each matrix is rounded to int4 or left to become int8.
        group: Inputs that share a scale of int4 values: 32, 64 or 128; 0 is a whole row.
        rank: Gives every matrix a low-rank branch of this rank, y = W x + U (V x), fitted together with the zeros; it
            lies in the folder `low_rank` as an adapter. For methods that are calibrated. With `bits`, those get it that
            it is worth its bits for.
        calibration: A UTF-8 text file, or a folder of them; by default the model writes its own calibration text.
        windows: Calibration windows.
        length: Tokens of each; None takes 512, or the model's context where that is shorter.
        seed: Of the places of the windows in the text, or of the samples.
        threads: Threads of the engine; 0 chooses.

    Raises:
        GossamerError: one is out of range, or cannot be had with another.
    """

    method: str = DEFAULT_METHOD
    sparsity: float | None = None
    pattern: tuple[int, int] | None = None
    bits: float = 0.0
    allocation: str | Path | None = None
    weights: str = STORED
    group: int = _GROUP
    rank: int = 0
    calibration: str | Path | None = None
    windows: int = WINDOWS
    length: int | None = None
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        check_threads(self.threads)
        method, weights, rank = self.method, self.weights, self.rank
        if self.bits:
            self._check_bits()
        elif self.zeros is None:
            Target.parse(self.sparsity, self.pattern)
        elif self.sparsity is not None or self.pattern is not None:
            raise GossamerError(f"{self.allocation}: says the zeros already; leave sparsity and pattern out")
        if method not in METHODS:
            raise GossamerError(f"unknown pruning method {method!r}; there are {', '.join(METHODS)}")
        if weights not in (STORED, "int4", AUTO):
            raise GossamerError(f"weights must be {STORED}, int4 or {AUTO}, got {weights!r}")
        if weights == AUTO and not self.bits:
            raise GossamerError(f"weights {AUTO} go with a budget of bits")
        if weights == "int4" and method not in CALIBRATED:
            raise GossamerError(f"method {method} cannot round to int4; {', '.join(CALIBRATED)} can")
        if rank < 0 or (rank and method not in CALIBRATED):
            raise GossamerError(
                f"rank {rank} cannot be had with method {method}: give 0, or a method that is calibrated"
            )
        check_group(self.group)
        if self.group != _GROUP and weights == STORED:
            raise GossamerError(f"group {self.group} goes with weights int4, and they are {weights}")
        if self.windows < 1 or (self.length is not None and self.length < 1):
            raise GossamerError(f"calibration needs at least 1 window of 1 token, got {self.windows} of {self.length}")
        if self.seed < 0:
            raise GossamerError(f"seed must be at least 0, got {self.seed}")
        if self.calibration is not None and not str(self.calibration):
            raise GossamerError("calibration must name a file or folder, got an empty text")
        _ = self.way

    def _check_bits(self) -> None:
        """Raises `GossamerError` for what cannot be had with a budget of bits."""
        if not 0 < self.bits < 64:
            raise GossamerError(f"bits must be above 0, got {self.bits:g}")
        if self.sparsity is not None or self.pattern is not None or self.allocation not in (None, "divergence"):
            raise GossamerError("a budget of bits divides the zeros itself: leave sparsity, pattern and allocation out")
        if self.method not in CALIBRATED:
            raise GossamerError(f"method {self.method} measures nothing: a budget of bits cannot be had")
        if self.weights == STORED:
            raise GossamerError(f"a budget of bits needs weights {AUTO} or int4, got {self.weights}")

    @property
    def zeros(self) -> Path | None:
        """The report of another run that says how many zeros each matrix is to have."""
        if self.allocation is None or self.allocation in ALLOCATIONS:
            return None
        path = Path(self.allocation)
        if not path.is_file():
            raise GossamerError(
                f"unknown allocation {str(self.allocation)!r:.80}; there are {', '.join(ALLOCATIONS)}, or a "
                "gossamer_prune.json"
            )
        return path

    @property
    def way(self) -> str:
        """How the zeros are divided: one of `ALLOCATIONS`, or the name of a file."""
        method, allocation = self.method, self.allocation
        if self.bits:
            return "divergence"
        if self.zeros is not None:
            return self.zeros.name
        target = Target.parse(self.sparsity, self.pattern)
        if allocation is None:
            measured = method in CALIBRATED and not target.pattern and target.sparsity > 0
            return "divergence" if measured else "uniform"
        allocation = str(allocation)
        if allocation != "uniform" and target.pattern:
            raise GossamerError(
                f"an N:M pattern leaves every matrix the same zeros: allocation {allocation} cannot be had"
            )
        if allocation != "uniform" and method not in CALIBRATED:
            raise GossamerError(f"method {method} measures nothing: allocation {allocation} cannot be had")
        return allocation


def read_zeros(path: Path, names: list[str]) -> dict[str, Target]:
    """Returns the target of each matrix, by its name in the checkpoint, that a report of another run says.

    Args:
        path: A `gossamer_prune.json`; of it, "layers" is used.
        names: The matrices of the model at hand.

    Raises:
        GossamerError: it is not such a file, or is about other matrices.
    """
    report = read_json(path)
    layers = report.get("layers")
    if not isinstance(layers, dict) or set(layers) != set(names):
        other = min(set(names) ^ set(layers if isinstance(layers, dict) else ()))
        raise GossamerError(f"{path}: is about another model: only one of the two has {other}")
    for name, zeros in layers.items():
        if type(zeros) not in (int, float) or not 0 <= zeros < 1:
            raise GossamerError(f"{path}: {name}: zeros must be at least 0 and below 1, got {zeros!r:.80}")
    if pattern := report.get("pattern"):
        _log.warning("%s: is of zeros in a pattern, %s: how many there are is taken, and not where", path, pattern)
    return {name: Target(float(layers[name])) for name in names}
