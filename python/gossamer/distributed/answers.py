"""Files of prompts on Ray Data: parts of the file are answered by actors, and put together once all are there.

Parts are the checkpoint. A part appears whole or not at all, under the number of its first row, and is made of these
rows alone, whoever makes it: a job that was killed makes those that are missing, and each row is written once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ..errors import GossamerError
from ..folders import write_file
from ..generation.batch import answers
from ..generation.batch_files import BatchResult, check_files, same_run, whole_record
from ..generation.batch_rows import Rows
from ..generation.fingerprint import logits_digest
from ..generation.scheduler import MOST
from ..loading import load
from ..part_files import new_file
from .models import shared_folder
from .tables import Table, open_table, write_parquet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..progress import Progress

ROWS = 256
"""Rows of a part: enough that the texts that end it alone are few."""

_ABOUT = "about.json"


def answer_file(
    model: str | Path,
    src: str | Path,
    dst: str | Path,
    *,
    replicas: int = 1,
    threads: int = 0,
    chat: bool | None = None,
    system: str | None = None,
    batch: int = MOST,
    rows: int = ROWS,
    draft: str = "auto",
    kv: str = "f32",
    activations: str = "auto",
    kv_limit: int = 0,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> BatchResult:
    """Answers a file of prompts, as `gossamer batch` does, with actors of Ray's.

    Each answer is the one that `gossamer batch` gives. Started again after it was killed, a job goes on behind the
    parts that it had made. All machines see the files and the model under the same paths.

    Args:
        model: A packed folder, or a built-in model.
        src: The prompts: JSON objects a line, or a table where it is called *.parquet.
        dst: The answers, in the order of the prompts; a table where it is called *.parquet.
        replicas: Actors, each with a model.
        threads: Of each, which takes as many CPUs from Ray; 0 for all that this machine has.
        chat: As of `Model.stream`, for rows with a prompt.
        system: A system message for rows that have none.
        batch: Texts that an actor writes at once.
        rows: Of a part.
        draft: As of `Model.stream`.
        kv: As of `gossamer.load`.
        activations: As of `gossamer.load`.
        kv_limit: As of `gossamer.load`, of each actor.
        force: Replaces `dst`, and begins anew where another job was stopped.
        progress: Called with (rows done, rows, what).
        **options: Of rows that have none of their own: any of `gossamer.SamplingOptions`.

    Returns:
        What was done.

    Raises:
        GossamerError: a file or the model is not usable, an option is no good, or a job that was stopped there had
            other prompts, options or another model.
    """
    if replicas < 1 or rows < 1:
        raise GossamerError(f"replicas and rows must be at least 1, got {replicas} and {rows}")
    src, dst = Path(src).absolute(), Path(dst).absolute()
    check_files(src, dst, force, part=_parts(dst))
    folder = shared_folder(model)
    engine: dict[str, Any] = {"threads": threads, "kv": kv, "activations": activations}
    opened = load(folder, **engine)
    sampling = opened.defaults().changed(options)
    Rows(opened, sampling, chat, system)  # which says at once what is wrong
    table = open_table(src)
    about = {
        "prompts": table.digest,
        "model": logits_digest(opened),
        "options": {**sampling.to_dict(), "chat": chat, "system": system, "rows": rows},
    }
    cpus = opened.decoder.threads
    del opened
    result = BatchResult(table.rows)
    with _open_parts(dst, about, force) as parts:
        pending = _pending(parts, table, rows, result)
        if progress is not None:
            progress(result.resumed, table.rows, "answering")
        stage = {
            "folder": str(folder),
            "engine": {**engine, "threads": cpus, "kv_limit": kv_limit},
            "asked": {"sampling": sampling, "chat": chat, "system": system},
            "src": str(src),
            "parts": str(parts),
            "batch": batch,
            "draft": draft,
        }
        done = result.resumed
        for made in _made(pending, stage, replicas, cpus):
            for first in made["first"]:
                _count(_part(parts, int(first)), result)
            done += int(made["count"].sum())
            if progress is not None:
                progress(done, table.rows, "answering")
        _settle(parts, [_part(parts, first) for first in range(0, table.rows, rows)], dst)
    return result


def _pending(parts: Path, table: Table, rows: int, result: BatchResult) -> list[dict[str, int]]:
    """The parts that are still to be made, each as the stage takes it; those that are there are counted."""
    pending = []
    for first in range(0, table.rows, rows):
        path = _part(parts, first)
        if path.exists():
            _count(path, result, resumed=True)
        else:
            count = min(rows, table.rows - first)
            pending.append({"first": first, "count": count, "offset": table.offset(first)})
    return pending


def _made(
    pending: list[dict[str, int]], stage: dict[str, Any], replicas: int, cpus: int
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Has actors make parts, and gives each once it is written."""
    if not pending:
        return
    made = ray.data.from_items(pending, override_num_blocks=len(pending)).map_batches(
        _Answers,
        fn_constructor_kwargs=stage,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(replicas, len(pending))),
        num_cpus=cpus,
    )
    yield from made.iter_batches(batch_size=1, prefetch_batches=0)


class _Answers:
    """The stage: parts in, the same parts out once they are written."""

    def __init__(
        self,
        folder: str,
        engine: dict[str, Any],
        asked: dict[str, Any],
        src: str,
        parts: str,
        batch: int,
        draft: str,
    ) -> None:
        self._model = load(folder, **engine)
        self._asked = asked
        self._table = open_table(Path(src), measured=False)
        self._parts = Path(parts)
        self._batch = batch
        self._draft = draft

    def __call__(self, wanted: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Answers the rows of parts."""
        for first, count, offset in zip(wanted["first"], wanted["count"], wanted["offset"], strict=True):
            self._answer(int(first), int(count), int(offset))
        return wanted

    def _answer(self, first: int, count: int, offset: int) -> None:
        rows = Rows(self._model, **self._asked)
        asked = (rows.request(first + n, row) for n, row in enumerate(self._table.read(first, count, offset)))
        found = answers(self._model, asked, most=self._batch, first=first, draft=self._draft)
        lines = [json.dumps(rows.record(answer), ensure_ascii=False) + "\n" for answer in found]
        write_file(_part(self._parts, first), "".join(lines))


# --- the parts --------------------------------------------------------------------------------------------------------


def _parts(dst: Path) -> Path:
    return dst.with_name(f"{dst.name}.parts")


def _part(parts: Path, first: int) -> Path:
    return parts / f"{first:012}.jsonl"


@contextmanager
def _open_parts(dst: Path, about: dict[str, Any], force: bool) -> Iterator[Path]:
    """The folder of parts, for one job at a time; those of another job are refused, or removed with `force`."""
    parts = _parts(dst)
    parts.mkdir(parents=True, exist_ok=True)
    handle = os.open(parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GossamerError(f"{parts}: another job is writing there") from None
        try:
            goes_on = same_run((parts / _ABOUT).read_bytes(), about, parts, force)
        except FileNotFoundError:
            goes_on = False
        if not goes_on:
            for path in parts.glob("*.jsonl"):
                path.unlink()
            write_file(parts / _ABOUT, json.dumps(about) + "\n")
        yield parts
    finally:
        os.close(handle)


def _count(path: Path, result: BatchResult, *, resumed: bool = False) -> None:
    """Adds what is in a part to what was done."""
    with path.open("rb") as file:
        for line in file:
            record = whole_record(line) or {}
            result.errors += "error" in record
            if resumed:
                result.resumed += 1
            else:
                result.new_tokens += record.get("new_tokens", 0)


def _settle(parts: Path, paths: list[Path], dst: Path) -> None:
    """Puts the parts together, in order, and removes them."""
    with new_file(Path(os.path.realpath(dst))) as part, os.fdopen(os.dup(part.handle), "wb") as whole:
        if dst.suffix == ".parquet":
            write_parquet(paths, whole, dst)
        else:
            for path in paths:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, whole)
    shutil.rmtree(parts)
