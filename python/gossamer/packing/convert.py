"""Packing a checkpoint: value types as asked for, and for every matrix the format that is fastest here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Semaphore
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..arch.sources import ENCODER
from ..arch.spec import TABLES
from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.branches import delta_name
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError, one_line
from ..folders import check_destination, new_folder, shown_name
from ..formats import FORMATS, INTEGER_TYPES, STORED, TYPES, check_group, nonzero_bits, shape_of
from ..machine.threads import work_ahead
from ..progress import Progress
from .folder import Entry, PackedModel, PackedWriter, read_packed
from .matrix import Piece, Rounded, is_int4, join, keep_codes, pieces, round_piece, round_values
from .planner import Lookup, Machine, fastest_seconds, here
from .replan import PLANNED_FOR, this_processor

if TYPE_CHECKING:
    from .. import _core
    from ..arch.spec import Transformer

_LOG = logging.getLogger("gossamer")
_TURNS = 64  # more than there are threads that work ahead; measuring takes them all


def keeps_values(config: Transformer, name: str) -> bool:
    """Whether a matrix is never rounded: one of a few rows, or one that all else depends on."""
    return name.removeprefix(ENCODER) in TABLES or name in config.exact


def wanted_type(config: Transformer, name: str, weights: str, head: str) -> str:
    """Returns the type that a matrix is asked to have by `convert`'s options, and by what it is."""
    if name in config.exact:
        return "f32"
    if name in config.linears:
        return weights
    if keeps_values(config, name):
        return STORED
    if head == "auto":
        return "int8" if weights == "int4" else weights
    return head


@dataclass(frozen=True)
class Report:
    """What `convert` wrote.

    Attributes:
        path: The packed folder.
        entries: What it says of its matrices, by canonical name.
    """

    path: Path
    entries: dict[str, Entry]

    @property
    def weights(self) -> dict[str, _core.Weight]:
        """The matrices by canonical name, mapped from the folder."""
        return read_packed(self.path).weights

    @property
    def reasons(self) -> dict[str, str]:
        """Why each has its format, in words."""
        return {name: entry.reason for name, entry in self.entries.items()}


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    weights: str = "auto",
    group: int = 64,
    format: str = "auto",
    head: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Packs a checkpoint into a folder that loads at once; matrix by matrix, so that memory holds a few of them.

    Args:
        src: A Hugging Face checkpoint folder or a GGUF file.
        dst: Folder to write; must not exist yet, or be empty.
        weights: As for `pack_checkpoint`, as are those below.
        group: Inputs a scale.
        format: Format of the matrices.
        head: Type of the head's values.
        force: Replaces a model that lies at `dst`.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: an option, the source or a tensor is not usable, or `dst` is in use or cannot be written; then
            nothing is left behind.
    """
    path = Path(dst)
    check_destination(path, force=force, reads=[src])
    packing = Packing(open_checkpoint(src), weights=weights, group=group, format=format, head=head, progress=progress)
    return Report(path, write_packing(path, packing, force=force, reads=[src]))


def write_packing(
    folder: str | Path, packing: Packing, *, force: bool = False, reads: Iterable[str | Path] = ()
) -> dict[str, Entry]:
    """Writes a packed folder while its matrices are made, or nothing.

    Args:
        folder: Destination, as for `write_packed`, as are those below.
        packing: What is packed.
        force: Whether a model that lies there is replaced.
        reads: What is not replaced.

    Returns:
        What the folder says of its matrices, by canonical name.

    Raises:
        GossamerError: as `convert`.
    """
    entries: dict[str, Entry] = {}
    with new_folder(Path(folder), force=force, reads=reads) as part:
        with PackedWriter(part, packing.config, packing.factors) as writer:
            for name, made in packing:
                if isinstance(made, tuple):
                    writer.add(name, *made)
                    entries[name] = made[1]
                else:
                    writer.add_vector(name, made)
        writer.finish(packing.tokenizer, packing.info)
    return entries


def pack_checkpoint(
    checkpoint: Checkpoint,
    *,
    weights: str = "auto",
    group: int = 64,
    format: str = "auto",
    head: str = "auto",
    machine: Machine | Lookup | None = None,
    progress: Progress | None = None,
) -> PackedModel:
    """Packs a checkpoint in memory.

    Args:
        checkpoint: The source.
        weights: Type of the values of the blocks' matrices: one of `TYPES`, "auto" (int8, or int4 for matrices that it
            stores exactly, where it is faster here; `lightest` searches), or "stored" (as they are in the checkpoint).
            Whole numbers of a checkpoint are kept with the last two, and where the type asked for holds them; what
            packed weights cannot hold as it is becomes f32, or is rounded.
        group: Inputs that one scale of int8 and int4 values serves: 32, 64 or 128; 0 is a whole row.
        format: Format of the blocks' matrices: one of `FORMATS`, or "auto": the fastest here by estimate.
        head: Type of the values of embedding and head, which are dense: one of `TYPES`, "stored", or "auto": the type
            of the other weights, but int8 where that is int4. Low-rank branches have the type that "auto" means.
        machine: What "auto" chooses formats for; the one at hand by default, or a look at it.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: an option is unknown, or a tensor cannot be stored with the type asked for.
    """
    packing = Packing(
        checkpoint, weights=weights, group=group, format=format, head=head, machine=machine, progress=progress
    )
    model = PackedModel(packing.config, {}, {}, packing.tokenizer, packing.info)
    for name, made in packing:
        if isinstance(made, tuple):
            model.weights[name], model.reasons[name] = made[0], made[1].reason
        else:
            model.vectors[name] = made
    return model


class Packing:
    """A checkpoint on its way into packed weights, which are made one after another by iterating, once.

    Attributes:
        config: Its description.
        tokenizer: Of the model.
        info: Where it came from; see `PackedModel`.
        factors: Names of the matrices that are no part of the description: those of low-rank and parallel branches.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        weights: str = "auto",
        group: int = 64,
        format: str = "auto",
        head: str = "auto",
        machine: Machine | Lookup | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Checks the options; see `pack_checkpoint`.

        Raises:
            GossamerError: one is unknown, or the checkpoint has no usable tokenizer or config.
        """
        _check_option("weights", weights, ("auto", STORED, *TYPES))
        _check_option("head", head, ("auto", STORED, *TYPES))
        _check_option("format", format, ("auto", *FORMATS))
        check_group(group)
        self._weights, self._group, self._format, self._head = weights, group, format, head
        self._checkpoint, self._progress = checkpoint, progress or (lambda *_: None)
        self._sources = checkpoint.sources()
        self._searched: dict[str, str] = {}
        self._changed: dict[str, tuple[str, str]] = {}  # what matrices are stored as, and become, by name
        self._turns = Semaphore(_TURNS)
        self.tokenizer = checkpoint.tokenizer()
        self.config = arch.family(checkpoint.config).describe(checkpoint.config)
        look = machine or here(progress, self.config.positions)
        self._machine = look if isinstance(look, Machine) else self._alone(look)
        self._dense = self.config.weights.keys() - self.config.linears.keys()
        self.factors = [
            name + key
            for name, source in self._sources.items()
            if source.tensor in checkpoint.low_rank
            for key in (LOW_RANK_U, LOW_RANK_V)
        ] + [
            delta_name(name, number)
            for name, source in self._sources.items()
            for number, _ in enumerate(checkpoint.parallel.get(source.tensor, ()), 1)
        ]
        name = shown_name(checkpoint.path)
        self.info: dict[str, Any] = {
            "name": name,
            "source": name,
            "family": checkpoint.config["model_type"],
            "config": dict(checkpoint.config),  # which names of tensors, as adapters have them, follow from
            "notes": [one_line(note.replace(str(checkpoint.path), name)) for note in checkpoint.notes],
        }
        if pooling := checkpoint.pooling():
            self.info["pooling"] = pooling.to_dict()
        if format == "auto" and not isinstance(machine, Machine):
            self.info[PLANNED_FOR] = this_processor()

    def __iter__(self) -> Iterator[tuple[str, tuple[_core.Weight, Entry] | NDArray[np.float32]]]:
        """Gives the canonical name of each tensor, and its packed weight with what is to be said of it, or its vector.

        Raises:
            GossamerError: a tensor is not usable, or cannot be stored with the type asked for.
        """
        parts: list[Piece] = []
        done = 0
        for (name, rows), read in work_ahead(self._read, self._pieces()):
            source = self._sources[name]
            if not parts:
                self._progress(done, len(self._sources), f"packing {name}")
                done += 1
            made: Rounded | NDArray[np.float32]
            if not isinstance(read, Piece):
                made = read
            else:
                parts.append(read)
                if rows is not None and rows.stop < source.shape[0]:
                    continue
                made = join(parts)
            if not isinstance(made, Rounded):
                yield name, made
                continue
            why = "every value is int4, exactly; " if self._searched.get(name) == "int4" else ""
            what = f"tensor {source.tensor}"
            yield name, self._packed(made, "dense" if name in self._dense else self._format, what, why)
            if source.tensor in self._checkpoint.low_rank:
                branch = self._checkpoint.low_rank[source.tensor]
                finer = "int8" if made.type == "int4" else made.type
                for key, factor in ((LOW_RANK_U, branch.u), (LOW_RANK_V, branch.v)):
                    what = f"low-rank branch of {source.tensor}"
                    yield name + key, self._packed(self._rounded(factor, finer, what), "auto", what)
            for number, tensor in enumerate(self._checkpoint.parallel.get(source.tensor, ()), 1):
                values = self._checkpoint.read(replace(source, tensor=tensor, plus=0.0))
                what = f"tensor {tensor}"
                added = self._rounded(values, made.type, what)
                yield delta_name(name, number), self._packed(added, self._format, what)
        self._progress(len(self._sources), len(self._sources), "packing")
        for (form, type_), count in Counter(self._changed.values()).items():
            why = "rounded once more" if type_ in INTEGER_TYPES else "which holds their values"
            _LOG.warning(
                "%s: %d matrices are not kept as %s: they become %s, %s", self.info["name"], count, form, type_, why
            )

    def _pieces(self) -> Iterator[tuple[str, slice | None]]:
        """What is read at once: a tensor, or some rows of one that needs no floats but those."""
        for name, source in self._sources.items():
            parted = len(source.shape) == 2 and source.whole and self._checkpoint.has_rows(source.tensor)
            if parted and (name in self._dense or self._type(name) in INTEGER_TYPES):
                yield from ((name, rows) for rows in pieces(*source.shape))
            else:
                yield name, None

    def _read(self, place: tuple[str, slice | None]) -> Piece | Rounded | NDArray[np.float32]:
        name, rows = place
        source, what = self._sources[name], f"tensor {self._sources[name].tensor}"
        form, wanted = self._checkpoint.form(source.tensor), self._wanted(name)
        with self._turns:
            if rows is not None:
                values = self._checkpoint.rows(source.tensor, rows)
                with self._named(what):
                    piece = round_piece(values, self._type(name), self._group, dense=name in self._dense)
                self._note(name, form, piece, values)
                return piece
            codes = self._checkpoint.read_codes(source)
            if codes is not None and (kept := keep_codes(codes, wanted, self._group)) is not None:
                return kept
            values = self._checkpoint.read(source)
            if values.ndim == 1:
                return np.array(values, np.float32)
            made = self._rounded(values, self._type(name), what)
            self._note(name, form, made, values)
            return made

    def _note(self, name: str, form: str | None, made: Piece | Rounded, values: NDArray[np.float32]) -> None:
        """Notes where a matrix of codes and scales is rounded anew, or has become of floats though nobody asked."""
        if form is None or name in self._changed:
            return
        if not made.holds(values) if made.type in INTEGER_TYPES else self._wanted(name) in ("auto", STORED):
            self._changed[name] = (form, made.type)

    def _wanted(self, name: str) -> str:
        return wanted_type(self.config, name, self._weights, self._head)

    def _type(self, name: str) -> str:
        wanted = self._wanted(name)
        if wanted == "auto" and name not in self._dense:
            if name not in self._searched:
                self._searched[name] = self._lightest(name)
            return self._searched[name]
        return _resolve(wanted, self._checkpoint.dtype(self._sources[name].tensor))

    def _lightest(self, name: str) -> str:
        """The type of floats of a block where nobody says it: int4 where that loses nothing and is faster here."""
        source = self._sources[name]
        if len(source.shape) != 2 or not source.whole or not self._checkpoint.has_rows(source.tensor):
            return "int8"
        bits = []
        for rows in (slice(0, 1), *pieces(*source.shape)):  # one row tells nearly always
            values = self._checkpoint.rows(source.tensor, rows)
            if not is_int4(values, self._group):
                return "int8"
            bits.append(nonzero_bits(values))
        shape = shape_of(np.concatenate(bits[1:]), source.shape[1], self._group)
        return min(("int4", "int8"), key=lambda type_: fastest_seconds(shape, type_, self._machine))

    def _rounded(self, values: NDArray[np.float32], type_: str, what: str) -> Rounded:
        with self._named(what):
            return round_values(values, type_, self._group)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Has errors say what they are about."""
        try:
            yield
        except ValueError as error:
            raise GossamerError(f"{self._checkpoint.path}: {what}: {error}") from None

    def _packed(self, matrix: Rounded, format: str, what: str, why: str = "") -> tuple[_core.Weight, Entry]:
        choice = matrix.choose(format, self._machine)
        with self._named(what):
            weight = matrix.pack(choice)
        return weight, Entry.of(weight, why + choice.reason, matrix.nonzeros)

    def _alone(self, look: Lookup) -> Lookup:
        """A look at the machine during which nothing else runs here, since formats may be measured."""
        found: dict[str | None, Machine] = {}

        def alone(type_: str | None) -> Machine:
            if type_ not in found:
                with ExitStack() as stack:
                    for _ in range(_TURNS):
                        stack.enter_context(self._turns)
                    found[type_] = look(type_)
            return found[type_]

        return alone


def _check_option(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise GossamerError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def _resolve(wanted: str, stored: str) -> str:
    """The type that floats get; whole numbers that cannot be kept are floats by now."""
    if wanted == "auto":
        return "int8"
    if wanted != STORED:
        return wanted
    return stored if stored in TYPES and stored not in INTEGER_TYPES else "f32"
