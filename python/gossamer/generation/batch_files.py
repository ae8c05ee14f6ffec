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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import GossamerError, did_you_mean
from ..files import parse_json, refuse_pointer
from ..parts import new_file
from ..text.messages import checked
from .batch import Answer, Request, answers
from .fingerprint import logits_digest
from .sampling_options import SamplingOptions
from .scheduler import MOST

if TYPE_CHECKING:
    from ..progress import Progress
    from .drafts import Draft
    from .model import Model

_OPTIONS = tuple(field.name for field in fields(SamplingOptions))
_KNOWN = ("id", "prompt", "messages", *_OPTIONS)


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


def check_files(src: str | Path, dst: str | Path, force: bool = False) -> None:
    """Makes sure that `batch_file` may read one file and write the other.

    Raises:
        GossamerError: as there, as far as that is known without a model.
    """
    src, dst = Path(src), Path(dst)
    if not src.is_file():
        raise GossamerError(f"{src}: {'is no file' if src.exists() else 'no such file'}")
    refuse_pointer(src)
    if dst.exists() and (not dst.is_file() or dst.samefile(src)):
        raise GossamerError(f"{dst}: {'is what is read' if dst.is_file() else 'is no file'}; name another file")
    if dst.exists() and not force and not _part(dst).exists():
        raise GossamerError(f"{dst}: exists already; --force replaces it")


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
    if system is not None and not model.tokenizer.has_chat_template:
        raise GossamerError(f"{model.info.get('name', 'the model')} has no chat template, and so no system message")
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
            asked = _Lines(model, src, sampling, chat, system)
            found = answers(model, asked.requests(result.resumed), most=most, first=result.resumed, draft=draft)
            for done, answer in enumerate(found, result.resumed + 1):
                record = asked.record(answer)
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


class _Lines:
    """The lines of a file of prompts, as far as they are read and not answered."""

    def __init__(
        self, model: Model, path: Path, sampling: SamplingOptions, chat: bool | None, system: str | None
    ) -> None:
        self._model = model
        self._path = path
        self._sampling = sampling
        self._chat = chat
        self._system = system
        self._asked: dict[int, dict[str, Any]] = {}  # what answers repeat, by number

    def requests(self, first: int) -> Iterator[Request | GossamerError]:
        """What is asked from a line on, numbered from 0."""
        with self._path.open("rb") as file:
            for number, line in enumerate(itertools.islice(file, first, None), first):
                yield self._request(number, line)

    def record(self, answer: Answer) -> dict[str, Any]:
        """The answer's line."""
        record = {"line": answer.number + 1, **self._asked.pop(answer.number, {})}
        if answer.error is not None or answer.completion is None:
            return record | {"error": str(answer.error)}
        stats = answer.completion.stats
        record |= {
            "text": answer.completion.text,
            "finish": stats.finish,
            "prompt_tokens": stats.prompt_tokens,
            "new_tokens": stats.new_tokens,
        }
        if stats.sampling.logprobs is not None:
            record["logprobs"] = [entry.to_dict() for entry in answer.completion.logprobs]
        return record

    def _request(self, number: int, line: bytes) -> Request | GossamerError:
        try:
            value = _object(line)
            self._asked[number] = {name: value[name] for name in ("id", "prompt", "messages") if name in value}
            own = {name: value[name] for name in _OPTIONS if name in value}
            sampling = self._sampling.changed(own)
            # A seed of the line's own draws what `generate` draws with it.
            return Request(self._prompt(value), sampling, self._chat, 0 if "seed" in own else number)
        except GossamerError as error:
            return error

    def _prompt(self, value: dict[str, Any]) -> str | list[dict[str, Any]]:
        """The prompt or the messages of a line, behind the system message where there is one."""
        for name in value:
            if name not in _KNOWN:
                raise GossamerError(f"{name!r:.80} is no key of a line{did_you_mean(name, _KNOWN)}")
        if ("prompt" in value) == ("messages" in value):
            raise GossamerError("a line must have either prompt or messages")
        if "prompt" in value:
            prompt = value["prompt"]
            if not isinstance(prompt, str):
                raise GossamerError(f"prompt must be a text, got {prompt!r:.80}")
            if self._system is None:
                return prompt
            return [{"role": "system", "content": self._system}, {"role": "user", "content": prompt}]
        messages = checked(value["messages"])
        if self._system is None or any(message["role"] == "system" for message in messages):
            return messages
        return [{"role": "system", "content": self._system}, *messages]


def _object(line: bytes) -> dict[str, Any]:
    """A line's JSON object."""
    if not line.strip():
        raise GossamerError("the line is empty")
    try:
        value = parse_json(line.decode())
        json.dumps(value, allow_nan=False)
    except UnicodeDecodeError as error:
        raise GossamerError(f"not UTF-8: {error.reason} at byte {error.start + 1}") from None
    except ValueError as error:
        raise GossamerError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise GossamerError(f"a line must be a JSON object with prompt or messages, got {value!r:.80}")
    if "id" in value and (isinstance(value["id"], bool) or not isinstance(value["id"], (str, int))):
        raise GossamerError(f"id must be a text or a whole number, got {value['id']!r:.80}")
    return value


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
    head = _whole(file.readline())
    if head is None:
        return 0
    if head != about:
        if force:
            return 0
        other = [name for name in about if head.get(name) != about[name]]
        raise GossamerError(f"{path}: a run that was stopped had other {' and '.join(other)}; --force begins anew")
    end = file.tell()
    while (record := _whole(file.readline())) is not None and record.get("line") == result.resumed + 1:
        result.resumed += 1
        result.errors += "error" in record
        end = file.tell()
    return end


def _whole(line: bytes) -> dict[str, Any] | None:
    """The object of a line that was written to its end."""
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
