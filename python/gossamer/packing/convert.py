"""Packing a checkpoint: value types as asked for, and for every matrix the format that is fastest here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError, one_line
from ..folders import check_destination, shown_name
from ..formats import FORMATS, INTEGER_TYPES, STORED, TYPES, check_group
from ..machine.threads import work_ahead
from ..progress import Progress
from .folder import PackedModel, write_packed
from .matrix import Rounded, keep_codes, round_values
from .planner import Lookup, Machine, here
from .replan import PLANNED_FOR, this_processor

if TYPE_CHECKING:
    from .. import _core

_HEAD = ("embed", "embed_project", "head_project", "head")  # a tied head is the embedding
_KEPT = ("positions",)  # of a few rows, which stay as they are


@dataclass(frozen=True)
class Report:
    """What `convert` wrote.

    Attributes:
        path: The packed folder.
        weights: Its matrices by canonical name.
        reasons: Why each has its format, in words.
    """

    path: Path
    weights: dict[str, _core.Weight]
    reasons: dict[str, str]


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
    """Packs a checkpoint into a folder that loads at once.

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
    model = pack_checkpoint(
        open_checkpoint(src), weights=weights, group=group, format=format, head=head, progress=progress
    )
    write_packed(path, model, force=force, reads=[src])
    return Report(path, model.weights, model.reasons)


def pack_checkpoint(
    checkpoint: Checkpoint,
    *,
    weights: str = "auto",
    group: int = 64,
    format: str = "auto",
    head: str = "auto",
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> PackedModel:
    """Packs a checkpoint in memory.

    Args:
        checkpoint: The source.
        weights: Type of the values of the blocks' matrices: one of `TYPES`, "auto" (int8; `lightest` searches), or
            "stored" (as they are in the checkpoint). Whole numbers of a checkpoint are kept with the last two, and
            where the type asked for holds them; what packed weights cannot hold as it is becomes f32, or is rounded.
        group: Inputs that one scale of int8 and int4 values serves: 32, 64 or 128; 0 is a whole row.
        format: Format of the blocks' matrices: one of `FORMATS`, or "auto": the fastest here by estimate.
        head: Type of the values of embedding and head, which are dense: one of `TYPES`, "stored", or "auto": the type
            of the other weights, but int8 where that is int4. Low-rank branches have the type that "auto" means.
        machine: What "auto" chooses formats for; the one at hand by default.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: an option is unknown, or a tensor cannot be stored with the type asked for.
    """
    _check_option("weights", weights, ("auto", STORED, *TYPES))
    _check_option("head", head, ("auto", STORED, *TYPES))
    _check_option("format", format, ("auto", *FORMATS))
    check_group(group)
    if head == "auto":
        head = "int8" if weights == "int4" else weights
    tokenizer = checkpoint.tokenizer()
    family = arch.family(checkpoint.config)
    packed: dict[str, _core.Weight] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    reasons: dict[str, str] = {}
    planned: Machine | Lookup = machine or here(progress)

    sources = checkpoint.sources()
    config = family.describe(checkpoint.config)
    dense = {*_HEAD, *_KEPT, *config.exact}

    def wanted(name: str) -> str:
        if name in config.exact:
            return "f32"
        return head if name in _HEAD else STORED if name in _KEPT else weights

    def rounded(values: NDArray[np.float32], type_: str, what: str) -> Rounded:
        try:
            return round_values(values, type_, group)
        except ValueError as error:
            raise GossamerError(f"{checkpoint.path}: {what}: {error}") from None

    def read(name: str) -> Rounded | NDArray[np.float32]:
        source, type_ = sources[name], wanted(name)
        codes = checkpoint.read_codes(source)
        if codes is not None and (kept := keep_codes(codes, type_, group)) is not None:
            return kept
        values = checkpoint.read(source)
        if values.ndim == 1:
            return np.array(values, np.float32)
        return rounded(values, _resolve(type_, checkpoint.dtype(source.tensor)), f"tensor {source.tensor}")

    def put(name: str, matrix: Rounded, format_: str) -> None:
        choice = matrix.choose(format_, planned)
        packed[name] = matrix.pack(choice)
        reasons[name] = choice.reason

    # Nothing else may run where formats are measured.
    threads = 1 if format == "auto" and machine is None else 0
    for done, (name, made) in enumerate(work_ahead(read, sources, threads)):
        if progress:
            progress(done, len(sources), f"packing {name}")
        if not isinstance(made, Rounded):
            vectors[name] = made
            continue
        put(name, made, "dense" if name in dense else format)
        stored = sources[name].tensor
        if stored in checkpoint.low_rank:
            branch, finer = checkpoint.low_rank[stored], "int8" if made.type == "int4" else made.type
            for key, factor in ((LOW_RANK_U, branch.u), (LOW_RANK_V, branch.v)):
                put(name + key, rounded(factor, finer, f"low-rank branch of {stored}"), "auto")
    if progress:
        progress(len(sources), len(sources), "packing")
    name = shown_name(checkpoint.path)
    info: dict[str, Any] = {
        "name": name,
        "source": name,
        "family": checkpoint.config["model_type"],
        "config": dict(checkpoint.config),  # which names of tensors, as adapters have them, follow from
        "notes": [one_line(note.replace(str(checkpoint.path), name)) for note in checkpoint.notes],
    }
    if checkpoint.window is not None:
        info["sliding_window"] = checkpoint.window
    if machine is None and format == "auto":
        info[PLANNED_FOR] = this_processor()
    return PackedModel(config, packed, vectors, tokenizer, info, reasons)


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
