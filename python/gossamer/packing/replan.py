"""Packed models on another processor: what it would choose, and packing again for it without loss."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..formats import expected_shape
from ..machine.roofline import machine_key
from ..progress import Progress
from .folder import PackedModel, is_packed, read_packed
from .matrix import stored
from .planner import choose, here

if TYPE_CHECKING:
    from .. import _core

PLANNED_FOR = "planned_for"  # in a packed model's info: the processor that its formats were chosen for

_log = logging.getLogger("gossamer")


def this_processor() -> dict[str, str]:
    """Returns what formats are chosen for here, as a packed folder keeps it: processor and isa."""
    machine = machine_key()
    return {"processor": machine["processor"], "isa": machine["isa"]}


def replanned(src: str | Path, progress: Progress | None = None) -> PackedModel:
    """Returns a packed model with the formats that are fastest here; every value stays what it is.

    Args:
        src: A packed folder.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: `src` is no packed folder, or not usable.
    """
    if not is_packed(Path(src)):
        raise GossamerError(f"{src}: is not packed, so there is nothing to plan anew; convert packs it")
    model = read_packed(src)
    weights: dict[str, _core.Weight] = {}
    reasons: dict[str, str] = {}
    machine = here(progress, model.config.positions)
    for done, (name, weight) in enumerate(model.weights.items()):
        if progress:
            progress(done, len(model.weights), f"choosing {name}")
        if "." not in name or name in model.config.exact:  # those are dense
            weights[name], reasons[name] = weight, model.reasons.get(name, "")
        else:
            matrix = stored(weight)
            choice = matrix.choose(machine=machine)
            weights[name], reasons[name] = matrix.pack(choice), choice.reason
    if progress:
        progress(len(model.weights), len(model.weights), "choosing formats")
    return replace(model, weights=weights, reasons=reasons, info=model.info | {PLANNED_FOR: this_processor()})


def advise(model: PackedModel, progress: Progress | None = None) -> str | None:
    """Returns a line about a packed model whose formats were chosen for another processor and are not this one's.

    None where they were chosen here, nobody knows where, or the choice would be the same. What is not known of this
    machine yet is measured, as `planner.this_machine` does.
    """
    planned = model.info.get(PLANNED_FOR)
    if not isinstance(planned, dict) or planned == this_processor():
        return None
    machine = here(progress, model.config.positions)
    changes: Counter[tuple[str, str]] = Counter()
    for name, weight in model.weights.items():
        if "." not in name or name in model.config.exact or "asked for" in model.reasons.get(name, ""):
            continue
        shape = expected_shape(weight.rows, weight.cols, weight.nnz, weight.pattern)
        choice = choose(shape, weight.type, machine=machine)
        if choice.format != weight.format:
            changes[weight.format, choice.format] += 1
    if not changes:
        return None
    kinds = ", ".join(f"{count} {now} that should be {better}" for (now, better), count in changes.items())
    return (
        f"the formats were chosen for {_shown(planned)}; for {_shown(this_processor())} there are {kinds}: "
        "gossamer convert --replan SRC DST packs them anew, without loss"
    )


def tell(model: PackedModel, progress: Progress | None = None) -> None:
    """Logs what `advise` says, with the model's path."""
    line = advise(model, progress)
    if line is not None:
        _log.warning("%s: %s", model.info.get("path", model.info.get("name", "the model")), line)


def _shown(planned: dict[str, Any]) -> str:
    return f"{planned.get('processor')!s:.80} ({planned.get('isa')!s:.20})"
