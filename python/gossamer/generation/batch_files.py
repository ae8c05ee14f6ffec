"""Files of prompts, a JSON object a line, and the file of answers: a line for each, in the same order.

Answers go to `OUT.part`, behind a line that says what they come from, and to OUT once all are there. A run that was
killed goes on behind the last whole line. Each line is drawn with random numbers of its own, so the file is the same
however often that happens.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import GossamerError
from ..files import refuse_pointer
from ..folders import check_new_file
from ..part_files import new_file
from .batch import Request, answers
from .batch_rows import Rows, read_row
from .drafts import guessing
from .fingerprint import logits_digest
from .scheduler import MOST

if TYPE_CHECKING:
    from ..progress import Progress
    from .drafts import Draft
    from .model import Model
    from .sampling_options import SamplingOptions


@dataclass
class BatchResult:
    """What `batch_file` did.

    Attributes:
        lines: Of both files.
        errors: How many of them are errors.
        resumed: How many were there already.
        new_tokens: Tokens chosen in this run.
    """

    lines: int
    errors: int = 0
    resumed: int = 0
    new_tokens: int = 0


def check_files(src: str | Path, dst: str | Path, force: bool = False, part: Path | None = None) -> None:
    """Makes sure that `batch_file` may read one file and write the other.

    Args:
        src: The prompts.
        dst: The answers.
        force: Whether `dst` may be replaced.
        part: What a run that was stopped has left; None for where `batch_file` leaves it.

    Raises:
        GossamerError: as there, as far as that is known without a model.
    """
    src, dst = Path(src), Path(dst)
    if not src.is_file():
        raise GossamerError(f"{src}: {'is no file' if src.exists() else 'no such file'}")
    refuse_pointer(src)
    if dst.exists() and (not dst.is_file() or dst.samefile(src)):
        raise GossamerError(f"{dst}: {'is what is read' if dst.is_file() else 'is no file'}; name another file")
    if not (part or _part(dst)).exists():
        check_new_file(dst, force=force)


def batch_file(
    model: Model,
    src: str | Path,
    dst: str | Path,
    sampling: SamplingOptions,
    *,
    chat: bool | None = None,
    system: str | None = None,
    most: int = MOST,
    draft: Draft = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> BatchResult:
    """Answers a file of prompts.

    A line is `{"prompt": "..."}` or `{"messages": [...]}`, with `id` and sampling options where it has its own. What is
    wrong with a line is its answer: `{"line": 3, "error": "..."}`.

    Args:
        model: The model.
        src: The prompts.
        dst: The answers.
        sampling: The options of lines that have none of their own.
        chat: As of `Model.stream`, for lines with a prompt.
        system: A system message for lines that have none.
        most: Texts at once.
        draft: As of `Model.stream`.
        force: Replaces `dst`, and begins anew where another run was stopped.
        progress: Called with (lines done, lines, what).

    Returns:
        What was done.

    Raises:
        GossamerError: a file cannot be read or written, `dst` exists, or was begun with other prompts, options or
            another model.
    """
    check_files(src, dst, force)
    draft = guessing(model, draft, sampling)
    rows = Rows(model, sampling, chat, system)
    src, dst = Path(src), Path(dst)
    try:
        lines, digest = _measure(src)
        about = {
            "prompts": digest,
            "model": logits_digest(model),
            "options": {**sampling.to_dict(), "chat": chat, "system": system},
        }
        result = BatchResult(lines)
        with _open_part(dst, about, force, result) as file:
            asked = _requests(src, rows, result.resumed)
            found = answers(model, asked, most=most, first=result.resumed, draft=draft)
            for done, answer in enumerate(found, result.resumed + 1):
                record = rows.record(answer)
                result.errors += "error" in record
                result.new_tokens += record.get("new_tokens", 0)
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                file.flush()
                if progress is not None:
                    progress(done, lines, "answering")
            _settle(file, dst)
    except OSError as error:
        raise GossamerError(f"{error.filename or dst}: {error.strerror or error}") from None
    return result


def _requests(path: Path, rows: Rows, first: int) -> Iterator[Request | GossamerError]:
    """What is asked from a line on, numbered from 0."""
    with path.open("rb") as file:
        for number, line in enumerate(itertools.islice(file, first, None), first):
            yield rows.request(number, read_row(line))


def _measure(path: Path) -> tuple[int, str]:
    """How many lines a file has, and its SHA-256."""
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            lines += 1
    return lines, digest.hexdigest()


# --- the file that is being written -----------------------------------------------------------------------------------


def _part(dst: Path) -> Path:
    return dst.with_name(f"{dst.name}.part")


@contextmanager
def _open_part(dst: Path, about: dict[str, Any], force: bool, result: BatchResult) -> Iterator[IO[bytes]]:
    """The part, behind its last whole line; `result` says what is in it."""
    path = _part(dst)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GossamerError(f"{path}: another run is writing it") from None
        end = _resume(file, path, about, force, result)
        file.seek(end)
        file.truncate()
        if end == 0:
            file.write(json.dumps(about).encode() + b"\n")
            file.flush()
        yield file


def _resume(file: IO[bytes], path: Path, about: dict[str, Any], force: bool, result: BatchResult) -> int:
    """Counts the lines that are done; returns where they end, 0 where there is not even the first."""
    if not same_run(file.readline(), about, path, force):
        return 0
    end = file.tell()
    while (record := whole_record(file.readline())) is not None and record.get("line") == result.resumed + 1:
        result.resumed += 1
        result.errors += "error" in record
        end = file.tell()
    return end


def same_run(line: bytes, about: dict[str, Any], path: Path, force: bool) -> bool:
    """Returns whether a run that was stopped, of which a line tells, may go on; False begins anew.

    Args:
        line: What it came from; nothing of it is there where the line was not written to its end.
        about: What this one comes from.
        path: What it left, for the error.
        force: Begins anew instead of raising.

    Raises:
        GossamerError: it came from something else, or the file is no such run's.
    """
    head = whole_record(line)
    if head == about:
        return True
    if force or not line or (line.startswith(b"{") and not line.endswith(b"\n")):  # which was not written to its end
        return False
    if head is None:
        raise GossamerError(f"{path}: was not left by a run that was stopped; --force replaces it")
    other = [name for name in about if head.get(name) != about[name]]
    raise GossamerError(f"{path}: a run that was stopped had other {' and '.join(other)}; --force begins anew")


def whole_record(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line that was written to its end."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _settle(file: IO[bytes], dst: Path) -> None:
    """Puts the lines behind the first in their place."""
    file.seek(0)
    file.readline()
    with new_file(Path(os.path.realpath(dst))) as part, os.fdopen(os.dup(part.handle), "wb") as whole:
        shutil.copyfileobj(file, whole)
    _part(dst).unlink()
