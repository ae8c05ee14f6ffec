"""Rows of models that do a task: how well, how large, how fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.sources import ENCODER
from ..generation.ready import ready
from ..generation.speeds import measure
from ..generation.tasks import TaskResult, evaluate_task
from ..packing.convert import pack_checkpoint
from ..packing.folder import Entry
from ..tables import table
from ..text.metrics import FEWER
from .layers import Layer, totals

if TYPE_CHECKING:
    from ..generation.model import Model
    from ..packing.folder import PackedModel
    from ..progress import Progress
    from ..text.tasks import TaskSample

NEW, REPEATS = 64, 3
DENSE_FORMS = (("int8", 64), ("int4", 32))


def dense_forms(checkpoint: Path, called: str, report: Progress) -> dict[str, PackedModel]:
    """Packs a dense checkpoint in memory, in the forms that a sparse one has to beat; called: what it is."""
    from ..checkpoints import open_checkpoint

    opened = open_checkpoint(checkpoint)
    return {
        f"{called} {type_}:{group}": pack_checkpoint(opened, weights=type_, group=group, progress=report)
        for type_, group in DENSE_FORMS
    }


def row(
    name: str,
    packed: PackedModel,
    samples: Sequence[TaskSample],
    *,
    metric: str,
    threads: int = 0,
    max_new_tokens: int | None = None,
    timed: bool = True,
    report: Progress,
) -> tuple[dict[str, Any], TaskResult]:
    """Measures a packed model; its speed only where that is asked for.

    Returns:
        Its row, ready for JSON, and what it answered.
    """
    model = ready(packed, threads=threads)
    result = evaluate_task(model, samples, metric=metric, max_new_tokens=max_new_tokens, progress=report)
    return {"row": name, **size(model), **(speed(model, report) if timed else {}), **result.to_dict()}, result


def size(model: Model) -> dict[str, Any]:
    """Returns what a model's weights take: bytes of all, bits a weight and zeros of the blocks' matrices."""
    blocks = [
        Layer.of(name, Entry.of(weight))
        for name, weight in model.weights.items()
        if name.removeprefix(ENCODER).startswith("layers.")
    ]
    total = totals(blocks)
    return {"bytes": model.decoder.weight_bytes, "bits": total["bits"], "zeros": total["zeros"]}


def speed(model: Model, report: Progress) -> dict[str, Any]:
    """Times the model alone, a token at a time."""
    new = min(NEW, max(model.config.context // 4, 1))
    (timed,) = measure(model, 0, new, REPEATS, report)
    return {"tokens_per_second": timed["tokens_per_second"], "threads": timed["threads"], "runs": timed["runs"]}


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lays rows out for people."""
    metric = rows[0]["metric"]
    header = ["model", *([f"{metric}{' (less)' if metric in FEWER else ''}"] if metric != "exact" else []), "exact"]
    header += ["zeros", "MB", "bits/weight", "tokens/s"]
    cells = []
    for one in rows:
        error = one["standard_error"]
        value = f"{one['value']:.1%}" + (f" ± {error:.1%}" if error is not None else "")
        cells.append(
            [
                one["row"],
                value,
                *([f"{one['exact']:.1%}"] if metric != "exact" else []),
                f"{one['zeros']:.1%}",
                f"{one['bytes'] / 1e6:.1f}",
                f"{one['bits']:.2f}",
                f"{one['tokens_per_second']:.1f}",
            ]
        )
    return table(header, cells)
