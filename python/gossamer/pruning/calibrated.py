"""A checkpoint that is pruned on calibration tokens: the model that is measured on, and what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.lora import LowRank
from ..errors import GossamerError
from ..machine.threads import usable_threads, work_ahead
from ..progress import Progress
from .allocation import ALLOCATIONS, Size
from .int4 import Int4
from .linalg import Matrix
from .masks import Target
from .methods import CALIBRATED
from .methods.sparsegpt import rounded
from .options import Options
from .result import stored_type
from .sensitivity import Probe
from .sequential import prune_blocks

if TYPE_CHECKING:
    from .. import _core
    from ..arch import Sources
    from ..arch.sources import Source
    from ..arch.spec import Transformer
    from ..checkpoints import Checkpoint

_F16_MAX = float(np.finfo(np.float16).max)


class Calibrated:
    """A checkpoint and the engine that its blocks are pruned in.

    Attributes:
        decoder: The dense model at first, the pruned one in the end.
        pruned: The matrices that are done, by canonical name, packed as they are stored.
        branches: Their low-rank branches.
        few_tokens: The tokens that came to matrices of experts which were so few that magnitude decided.
    """

    def __init__(self, source: Checkpoint, model: Transformer, sources: Sources, options: Options) -> None:
        """Reads the checkpoint.

        Args:
            source: The checkpoint.
            model: Its description.
            sources: Where its tensors lie.
            options: What is asked for.

        Raises:
            GossamerError: a tensor is not usable.
        """
        self.pruned: dict[str, _core.Weight] = {}
        self.branches: dict[str, LowRank] = {}
        self.few_tokens: dict[str, int] = {}
        self._source = source
        self._model = model
        self._sources = sources
        self._options = options
        self.decoder, sizes = _decoder(source, model, sources, options.threads)
        self._sizes = {name: sizes[name] for name in model.linears}

    def prune(self, tokens: NDArray[np.int32], target: Target | dict[str, Target], progress: Progress) -> None:
        """Prunes block after block, into `pruned` and `branches`.

        Args:
            tokens: To calibrate on, [windows, length].
            target: Of all matrices together, or of each by canonical name.
            progress: Called with (done, total, what).

        Raises:
            GossamerError: a weight or an input is not finite, or moments have no inverse.
        """
        options = self._options
        if isinstance(target, dict):
            targets = target
        else:
            way, measured = ALLOCATIONS[options.way], {}
            if way.measure:
                probe = Probe(self.decoder, self._model, tokens, self._read)
                measured = way.measure(probe, target, self._put, progress)
            targets = way.divide(target, self._sizes, measured)
        method = CALIBRATED[options.method]
        if options.weights == "int4":
            method = rounded(method, Int4(options.group))
        self.few_tokens = prune_blocks(
            self.decoder, self._model, tokens, method, targets, self._read, self._replace, progress, options.rank
        )

    def _read(self, name: str) -> Matrix:
        return self._source.read(self._sources[name], finite=True)

    def _put(self, name: str, values: Matrix) -> None:
        self.decoder.set_weight(name, _measured(values))

    def _replace(self, name: str, values: Matrix, branch: LowRank | None) -> Matrix:
        dtype = "f32" if self._options.weights == "int4" else None
        self.pruned[name] = packed(self._source, self._sources[name], values, dtype)
        exact = self.pruned[name].type == "f32" and branch is None
        whole: Matrix = values if exact else self.pruned[name].unpack()
        if branch is not None:
            self.branches[name] = branch
            whole += branch.u @ branch.v
        self._put(name, whole)
        return whole


def packed(source: Checkpoint, place: Source, values: Matrix, dtype: str | None = None) -> _core.Weight:
    """Packs a matrix as it is to be stored: as a type, or as that of the source."""
    from .. import _core

    dtype = dtype or stored_type(source, place.tensor)
    if dtype == "f16" and np.abs(values).max(initial=0.0) > _F16_MAX:
        raise GossamerError(f"{source.path}: tensor {place.tensor} no longer fits f16 after pruning")
    return _core.pack(values, "dense", dtype)


def _decoder(
    source: Checkpoint, config: Transformer, sources: Sources, threads: int
) -> tuple[_core.Decoder, dict[str, Size]]:
    """The dense model to measure on, and what its matrices have.

    Its weights are int8 whatever is stored, and so are the inputs of its linears: a hundredth of noise in what is
    measured, which averages out over the tokens, for a fraction of the time and the memory of float32.
    """
    from .. import _core

    threads = usable_threads(threads)
    weights: dict[str, _core.Weight] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    sizes: dict[str, Size] = {}

    def read(name: str) -> tuple[_core.Weight, Size] | NDArray[np.float32]:
        values = source.read(sources[name], finite=True)
        if values.ndim == 1:
            return values
        kept = name == "positions" or name in config.exact
        weight = _core.pack(values, "dense", "f32") if kept else _measured(values)
        return weight, _size(values)

    for name, made in work_ahead(read, sources):
        if isinstance(made, tuple):
            weights[name], sizes[name] = made
        else:
            vectors[name] = made
    return _core.Decoder(config.to_dict(), weights, vectors, threads=threads, activations="a8"), sizes


def _measured(values: Matrix) -> _core.Weight:
    """A matrix as the model that is measured on has it."""
    from .. import _core

    return _core.pack(values, "dense", "int8", 64)


def _size(values: Matrix) -> Size:
    return Size(values.size, values.size - int(np.count_nonzero(values)))
