"""A checkpoint that is pruned on calibration tokens: the model that is measured on, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.lora import LowRank
from ..errors import GossamerError
from ..formats import STORED
from ..machine.threads import usable_threads, work_ahead
from ..packing.convert import keeps_values
from ..packing.matrix import join, pieces, round_piece
from ..packing.planner import Choice
from ..progress import Progress
from .allocation import ALLOCATIONS, Size
from .int4 import Int4
from .linalg import Matrix
from .masks import Form, Target
from .methods import CALIBRATED
from .methods.sparsegpt import rounded
from .options import AUTO, PruneOptions
from .result import stored_type
from .search import TYPES, measured, search
from .sensitivity import Probe
from .sequential import prune_blocks
from .store import Store
from .walk import Texts, places

if TYPE_CHECKING:
    from .. import _core
    from ..arch import Sources
    from ..arch.sources import Source
    from ..arch.spec import Transformer
    from ..checkpoints import Checkpoint

_GROUP = 64  # inputs a scale of the model that is measured on
_F16_MAX = float(np.finfo(np.float16).max)


class Calibrated:
    """A checkpoint and the engine that its blocks are pruned in.

    Attributes:
        decoder: The dense model at first, the pruned one in the end.
        pruned: The matrices that are done, by canonical name, packed as they are stored.
        branches: Their low-rank branches.
        few_tokens: The tokens that came to matrices of experts which were so few that magnitude decided.
        forms: What each matrix was to become.
    """

    def __init__(
        self, source: Checkpoint, model: Transformer, sources: Sources, options: PruneOptions, store: Store
    ) -> None:
        """Reads the checkpoint.

        Args:
            source: The checkpoint.
            model: Its description.
            sources: Where its tensors lie.
            options: What is asked for.
            store: Where matrices and hidden states are kept.

        Raises:
            GossamerError: a tensor is not usable.
        """
        from .. import _core

        self._store = store
        self.pruned: dict[str, _core.Weight] = {}
        self.branches: dict[str, LowRank] = {}
        self.few_tokens: dict[str, int] = {}
        self.forms: dict[str, Form] = {}
        self._source = source
        self._model = model
        self._places = places(model)
        self._sources = sources
        self._options = options
        self._dense, self._sizes, vectors = _dense(source, model, sources, store)
        threads = usable_threads(options.threads)
        self.decoder = _core.Decoder(model.to_dict(), self._dense, vectors, threads=threads, activations="a8")

    def prune(self, texts: Sequence[Texts], target: Target | dict[str, Target], progress: Progress) -> None:
        """Prunes block after block, into `pruned` and `branches`.

        Args:
            texts: To calibrate on, as many as are run at once in each.
            target: Of all matrices together, or of each by canonical name.
            progress: Called with (done, total, what).

        Raises:
            GossamerError: a weight or an input is not finite, or moments have no inverse.
        """
        options = self._options
        self.forms = self._forms(texts, target, progress)
        self._store.begun()
        for number in range(self._store.blocks):
            for name in self._inside(number):
                self._resume(name)
        method = CALIBRATED[options.method]
        self.few_tokens = prune_blocks(
            self.decoder,
            self._model,
            texts,
            {STORED: method, "int4": rounded(method, Int4(options.group))},
            self.forms,
            self._read,
            self._replace,
            progress,
            self._store,
            self._done,
        )

    def _forms(self, texts: Sequence[Texts], target: Target | dict[str, Target], progress: Progress) -> dict[str, Form]:
        """What each matrix is to become: as asked for, or divided or searched for by what is measured."""
        options, linears = self._options, self._model.linears
        if isinstance(target, dict):
            return {name: Form(target[name], options.weights, options.rank) for name in linears}
        kept = self._store.array("forms")
        if kept is None:
            forms = self._divided(texts, target, progress)
            rows = [(form.target.sparsity, form.weights == "int4", form.rank) for form in forms.values()]
            kept = self._store.keep("forms", np.array(rows, np.float64))
        return {
            name: Form(Target(zeros, target.pattern), "int4" if int4 else STORED, int(rank))
            for name, (zeros, int4, rank) in zip(linears, kept.tolist(), strict=True)
        }

    def _divided(self, texts: Sequence[Texts], target: Target, progress: Progress) -> dict[str, Form]:
        """What each matrix is to become, by canonical name in the order of the model."""
        options, linears = self._options, self._model.linears
        sizes = {name: self._sizes[name] for name in linears}
        if options.bits:
            costs = measured(self._probe(texts), linears, options.group, options.rank, self._put, progress)
            types = TYPES if options.weights == AUTO else (options.weights,)
            return search(options.bits, linears, sizes, costs, types=types, group=options.group, rank=options.rank)
        way, found = ALLOCATIONS[options.way], {}
        if way.measure:
            found = way.measure(self._probe(texts), target, self._put, progress)
        targets = way.divide(target, sizes, found)
        return {name: Form(targets[name], options.weights, options.rank) for name in linears}

    def _resume(self, name: str) -> None:
        """Takes what an earlier part of the run made of a matrix."""
        found = self._store.weight(f"pruned.{name}")
        if found is None:
            raise GossamerError(f"{name}: is missing in what the stopped run left; delete it to begin anew")
        self.pruned[name] = found
        u, v = (self._store.array(f"{factor}.{name}") for factor in ("u", "v"))
        if u is not None and v is not None:
            self.branches[name] = LowRank(u, v)

    def _done(self, block: int) -> None:
        """Takes the pruned matrices of a block out of the engine where memory is for one block alone."""
        if self._store.mapped:
            for name in self._inside(block):
                self.decoder.set_weight(name, self._dense[name])

    def _inside(self, number: int) -> list[str]:
        """The matrices of a block on the way."""
        prefix = self._places[number].prefix
        return [name for name in self._model.linears if name.startswith(prefix)]

    def _probe(self, texts: Sequence[Texts]) -> Probe:
        return Probe(self.decoder, self._model, texts, self._read)

    def _read(self, name: str) -> Matrix:
        return self._source.read(self._sources[name], finite=True)

    def _put(self, name: str, values: Matrix) -> None:
        self.decoder.set_weight(name, _measured(values))

    def _replace(self, name: str, values: Matrix, branch: LowRank | None) -> Matrix:
        dtype = "f32" if self.forms[name].weights == "int4" else None
        kept = packed(self._source, self._sources[name], values, dtype)
        self.pruned[name] = self._store.keep_weight(f"pruned.{name}", kept)
        exact = self.pruned[name].type == "f32" and branch is None
        whole: Matrix = values if exact else self.pruned[name].unpack()
        if branch is not None:
            self.branches[name] = LowRank(
                self._store.keep(f"u.{name}", branch.u), self._store.keep(f"v.{name}", branch.v)
            )
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


def _dense(
    source: Checkpoint, config: Transformer, sources: Sources, store: Store
) -> tuple[dict[str, _core.Weight], dict[str, Size], dict[str, NDArray[np.float32]]]:
    """The dense model to measure on: its matrices, what of them is zero, and its vectors.

    Its weights are int8 whatever is stored, and so are the inputs of its linears: a hundredth of noise in what is
    measured, which averages out over the tokens, for a fraction of the time and the memory of float32.
    """
    from .. import _core

    weights: dict[str, _core.Weight] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    sizes: dict[str, Size] = {}

    def read(name: str) -> tuple[_core.Weight, Size] | NDArray[np.float32]:
        place = sources[name]
        kept = keeps_values(config, name)
        if len(place.shape) == 2 and place.whole and not kept and source.has_rows(place.tensor):
            return _measured_by_pieces(source, place)
        values = source.read(place, finite=True)
        if values.ndim == 1:
            return values
        return (_core.pack(values, "dense", "f32") if kept else _measured(values)), _size(values)

    missing = []
    for name in sources:
        if (found := store.weight(f"dense.{name}")) is not None:
            weights[name] = found  # the sizes are part of what an earlier part of the run has used
        else:
            missing.append(name)
    for name, made in work_ahead(read, missing):
        if isinstance(made, tuple):
            weight, sizes[name] = made
            weights[name] = store.keep_weight(f"dense.{name}", weight)
        else:
            vectors[name] = made
    return weights, sizes, vectors


def _measured_by_pieces(source: Checkpoint, place: Source) -> tuple[_core.Weight, Size]:
    """What `_measured` gives, with a few rows at a time as floats."""
    parts, zeros = [], 0
    for rows in pieces(*place.shape):
        values = source.rows(place.tensor, rows)
        if not np.isfinite(values).all():
            raise GossamerError(f"{source.path}: tensor {place.tensor} has NaN or infinite values")
        zeros += _size(values).zeros
        parts.append(round_piece(values, "int8", _GROUP, dense=True))
    return join(parts).pack(Choice("dense", None, "")), Size(int(np.prod(place.shape)), zeros)


def _measured(values: Matrix) -> _core.Weight:
    """A matrix as the model that is measured on has it."""
    from .. import _core

    return _core.pack(values, "dense", "int8", _GROUP)


def _size(values: Matrix) -> Size:
    return Size(values.size, values.size - int(np.count_nonzero(values)))
