"""From a dense model and a task to a sparse one: the teacher trained first, then the student, then packed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GossamerError, naming, one_line
from ..files import read_json
from ..folders import check_destination, remove_folder, write_file
from ..formats import STORED
from ..hashes import sha256
from ..packing.convert import convert
from ..progress import Progress
from ..runs import stamps
from .options import Options
from .pipeline import Report, finetune
from .task_data import TaskFiles

RUN, RESULT = "run.json", "task.json"
DENSE, SPARSE, PACKED = "dense", "sparse", "packed"
_OURS = (RUN, RESULT, DENSE, SPARSE, PACKED)


@dataclass(frozen=True)
class TaskRun:
    """What a run has made.

    Attributes:
        teacher: The dense checkpoint that the student learned from.
        sparse: The checkpoint that was trained.
        packed: The same, packed.
        reports: Of the trainings that this call made, by the folder's name.
    """

    teacher: Path
    sparse: Path
    packed: Path
    reports: dict[str, Report]


def finetune_task(
    model: str | Path,
    dst: str | Path,
    task: TaskFiles,
    *,
    options: Options,
    teacher: str | Path | None = None,
    dense_first: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> TaskRun:
    """Trains a model for a task, with zeros, and packs it.

    `dst` gets a folder for each stage: `dense`, where the teacher is trained first, `sparse`, a checkpoint, and
    `packed`, which runs. The same call goes on after a stop of any kind, in the midst of a stage as well.

    Args:
        model: What to train: a checkpoint folder or GGUF file, dense or pruned.
        dst: Folder to make.
        task: The task's files.
        options: Of the student's training.
        teacher: The dense checkpoint; None takes `model`.
        dense_first: Options of the teacher's training; None leaves it as it is. A student that begins as its teacher
            begins as the trained one.
        force: Begins anew where `dst` holds another run.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: as `finetune`, or `dst` holds something else.
    """
    if dense_first is not None and teacher is None and options.schedule == "fixed":
        raise GossamerError(
            "a student that begins as the dense teacher has no zeros to keep: raise them (schedule cubic, sparsity), "
            "or name a teacher that is not the model"
        )
    folder = Path(dst)
    reads = [Path(model), *([Path(teacher)] if teacher else []), *task.paths]
    _begin(folder, _settings(model, teacher, task, options, dense_first), reads, force)
    try:
        return _stages(model, folder, task, options, teacher, dense_first, progress)
    finally:
        if [path.name for path in folder.iterdir()] == [RUN]:  # nothing that could be gone on with
            remove_folder(folder)


def _stages(
    model: str | Path,
    folder: Path,
    task: TaskFiles,
    options: Options,
    teacher: str | Path | None,
    dense_first: Options | None,
    progress: Progress | None,
) -> TaskRun:
    taught = Path(teacher or model)
    reports = {}
    if dense_first is not None:
        if not (folder / DENSE).exists():
            told = _stage("dense", progress)
            reports[DENSE] = finetune(
                taught, folder / DENSE, teacher=taught, data=task, options=dense_first, progress=told
            )
        taught = folder / DENSE
    student = Path(model) if teacher else taught
    if not (folder / SPARSE).exists():
        told = _stage("sparse", progress)
        reports[SPARSE] = finetune(student, folder / SPARSE, teacher=taught, data=task, options=options, progress=told)
    if not (folder / PACKED).exists():
        weights = "int8" if options.weights == STORED else options.weights
        convert(folder / SPARSE, folder / PACKED, weights=weights, group=options.group, head=options.head)
    return TaskRun(taught, folder / SPARSE, folder / PACKED, reports)


def _stage(name: str, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None

    def told(done: int, total: int, what: str) -> None:
        progress(done, total, f"{name}: {what}")

    return told


def _settings(
    model: str | Path, teacher: str | Path | None, task: TaskFiles, options: Options, dense_first: Options | None
) -> dict[str, Any]:
    """What must stay the same when a run goes on, ready for JSON."""
    held_out = task.held_out if isinstance(task.held_out, float) else one_line(str(task.held_out.resolve()))
    settings = {
        "model": one_line(str(Path(model).resolve())),
        "teacher": one_line(str(Path(teacher).resolve())) if teacher else "",
        "task": one_line(str(task.path.resolve())),
        "held_out": held_out,
        "dense_first": dense_first is not None,
        **options.pinned(),
        **stamps([Path(model), *([Path(teacher)] if teacher else [])]),
        "samples": [sha256(path) for path in task.paths if path.is_file()],  # who reads them tells of others
        **{f"dense {name}": value for name, value in (dense_first.pinned() if dense_first else {}).items()},
    }
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def _begin(folder: Path, settings: Mapping[str, Any], reads: list[Path], force: bool) -> None:
    """Makes the folder, or checks that the run in it is the same one; with `force` another goes."""
    path = folder / RUN
    if path.is_file():
        begun = read_json(path)
        other = next((key for key in {**begun, **settings} if begun.get(key) != settings.get(key)), None)
        if other is None:
            return
        if not force:
            raise GossamerError(
                f"{folder}: was begun with {other} {begun.get(other)!r:.80}, this run has "
                f"{settings.get(other)!r:.80}; --force begins anew"
            )
        strange = next((one for one in folder.iterdir() if one.name.removesuffix(".training") not in _OURS), None)
        if strange is not None:
            raise GossamerError(f"{strange}: is not of such a run; it is left as it is")
        if any(read.resolve().is_relative_to(folder.resolve()) for read in reads):
            raise GossamerError(f"{folder}: what is to be read lies in it")
        remove_folder(folder)
    else:
        check_destination(folder, reads=reads)
    with naming(folder, "cannot write"):
        write_file(path, json.dumps(settings, indent=2) + "\n")
