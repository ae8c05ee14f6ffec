"""Task files: prompts and what is to be written for them, a JSON object a line.

    {"prompt": "gossamer ->", "completion": " G AA S AH M ER"}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"source": "gossamer", "target": "G AA S AH M ER"}
    {"audio": "clips/17.flac", "transcript": "The spider spins.", "language": "en"}

Prompts are taken as they stand; messages go through the model's chat template, and the last one, the assistant's, is
the completion. A source is a prompt and a target a completion, named as for models with an encoder; of sound the path
counts from the file's folder, and the language is English where none is said. `accept` lists other answers that are
right, `id` and `metadata` are for whoever reads the results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..files import read_json_lines
from .messages import check_text, checked

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_CHAT: tuple[str, ...] = ("messages",)
_PLAIN, _PAIR, _SOUND = ("prompt", "completion"), ("source", "target"), ("audio", "transcript")
_BESIDE = ("accept", "id", "metadata")


@dataclass(frozen=True)
class TaskSample:
    """A prompt and its completion.

    Attributes:
        where: File and line, for messages.
        prompt: Text, or messages up to the completion's; of sound, the path as it stands there.
        completion: What is to be written.
        accept: Other answers that are right.
        about: `id` and `metadata`, as they stand there.
        audio: The file of what is heard instead of a prompt.
        language: That is spoken there.
    """

    where: str
    prompt: str | list[dict[str, Any]]
    completion: str
    accept: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    audio: Path | None = None
    language: str = "en"

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers that are right, the completion first."""
        return (self.completion, *self.accept)

    @property
    def chats(self) -> bool:
        """Whether the prompt is messages."""
        return not isinstance(self.prompt, str)

    @property
    def key(self) -> str:
        """What two samples with the same prompt share."""
        return self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt, sort_keys=True)

    def falls(self) -> float:
        """Returns a number from 0 to 1, short of it, that the prompt alone decides: the same one everywhere."""
        return int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big") / 2**64


def read_task(path: str | Path) -> list[TaskSample]:
    """Reads a task file; blank lines say nothing.

    Raises:
        GossamerError: it cannot be read, holds no samples, or a line is not as it has to be; the line names file and
            line.
    """
    folder = Path(path).parent
    return [_sample(where, value, folder) for where, value in read_json_lines(path, _fields())]


def _sample(where: str, value: dict[str, Any], folder: Path) -> TaskSample:
    known = next((names for names in (_CHAT, _PAIR, _SOUND) if names[0] in value), _PLAIN)
    chats, sounds = known is _CHAT, known is _SOUND
    for name in known:
        if name not in value:
            raise GossamerError(f"{where}: has no {name}; a sample has {_fields()}")
    for name in value:
        if name not in known + _BESIDE + (("language",) if sounds else ()):
            raise GossamerError(f"{where}: {name!r:.80} is no field that goes with {' and '.join(known)}")
    try:
        prompt, completion = _from_messages(value["messages"]) if chats else (value[known[0]], value[known[1]])
        accept = value.get("accept", [])
        language = value.get("language", "en")
        first, second = _PLAIN if chats else known
        for name, text in ((first, "" if chats else prompt), (second, completion), ("language", language)):
            if not isinstance(text, str):
                raise GossamerError(f"{name} must be a text, got {text!r:.80}")
            check_text(f"the {name}", text)
        if not prompt:
            raise GossamerError(f"the {first} is empty")
        if not completion.strip():
            raise GossamerError(f"the {second} is empty")
        if not isinstance(accept, list) or not all(isinstance(text, str) and text.strip() for text in accept):
            raise GossamerError(f"accept must be a list of texts, none of them empty, got {accept!r:.80}")
    except GossamerError as error:
        raise GossamerError(f"{where}: {error}") from None
    about: dict[str, Any] = {name: value[name] for name in ("id", "metadata") if name in value}
    audio = folder / str(prompt) if sounds else None
    return TaskSample(where, prompt, completion, tuple(accept), about, audio, language)


def _from_messages(value: Any) -> tuple[list[dict[str, Any]], Any]:
    messages = checked(value)
    last = messages[-1]
    if last["role"] != "assistant" or len(messages) < 2:
        raise GossamerError("the last of at least two messages must be the assistant's, which is the completion")
    extra = sorted({key for message in messages for key in message} - {"role", "content"})
    if extra:
        raise GossamerError(f"a message has {extra[0]!r:.80}, which is not heeded; there are role and content")
    content = last.get("content", "")
    return messages[:-1], content if isinstance(content, str) else "".join(part["text"] for part in content)


def _fields() -> str:
    return f"{' and '.join(_PLAIN)}, or {_CHAT[0]}, or {' and '.join(_PAIR)}, or {' and '.join(_SOUND)}"


def split_task(path: str | Path, held_out: str | Path | float) -> tuple[list[TaskSample], list[TaskSample]]:
    """Divides samples into those to train on and those held out.

    A share is taken by a hash of the prompt: a prompt falls on the same side in every file and run, whatever else is in
    the file.

    Args:
        path: The task file.
        held_out: A file of the samples held out, or a share above 0 and below 1 of those in `path`.

    Raises:
        GossamerError: a file is not usable, a side has no samples, or a prompt stands on both sides.
    """
    samples = read_task(path)
    if not isinstance(held_out, float):
        others = read_task(held_out)
        places = {sample.key: sample.where for sample in samples}
        for other in others:
            if other.key in places:
                raise GossamerError(f"{other.where}: the prompt is held out, and {places[other.key]} trains on it")
        return samples, others
    if not 0 < held_out < 1:
        raise GossamerError(f"the share held out must be above 0 and below 1, got {held_out:g}")
    sides: tuple[list[TaskSample], list[TaskSample]] = ([], [])
    for sample in samples:
        sides[sample.falls() < held_out].append(sample)
    for side, what in zip(sides, ("to train on", "held out"), strict=True):
        if not side:
            raise GossamerError(
                f"{path}: no samples are {what}: a share of {held_out:g} is held out of {len(samples)}, by a hash of "
                "the prompt; another share, or a file of samples held out, gives some"
            )
    return sides


def encode_prompt(sample: TaskSample, tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens that a model gets: the very ones that it is given to answer.

    Raises:
        GossamerError: there is no chat template for messages, or the tokenizer takes no such text; the line names file
            and line.
    """
    if sample.audio is not None:
        raise GossamerError(f"{sample.where}: is sound, and the model reads text")
    try:
        if isinstance(sample.prompt, str):
            return tokenizer.encode(sample.prompt)
        return tokenizer.chat(sample.prompt)
    except GossamerError as error:
        raise GossamerError(f"{sample.where}: {error}") from None


def encode_sample(sample: TaskSample, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the tokens of prompt and completion; the latter's end with one that ends a text.

    The completion has the tokens that it has behind the prompt, unless letters of both share one; then its own.

    Raises:
        GossamerError: as `encode_prompt`; no token ends a text, or the completion goes on behind one.
    """
    prompt = encode_prompt(sample, tokenizer)
    try:
        if any(token in tokenizer.eos_ids for token in tokenizer.encode(sample.completion, special=False)[:-1]):
            raise GossamerError("the completion goes on behind a token that ends a text")
        if isinstance(sample.prompt, str):
            begin, whole = sample.prompt, sample.prompt + sample.completion
            both = _without_end(tokenizer.encode(whole), tokenizer)
        else:
            begin, whole = _rendered(sample.prompt, sample.completion, tokenizer)
            if not whole.startswith(begin):  # as templates do that open an answer by words of their own
                whole = begin + sample.completion
            both = tokenizer.encode(whole, special=False)
        fits = both[: len(prompt)] == prompt
        tokens = both[len(prompt) :] if fits else tokenizer.encode(whole[len(begin) :], special=False)
    except GossamerError as error:
        raise GossamerError(f"{sample.where}: {error}") from None
    try:
        return prompt, ended(tokens, tokenizer.eos_ids)
    except GossamerError as error:
        raise GossamerError(f"{sample.where}: {error}") from None


def opening(sample: TaskSample, tokenizer: Tokenizer) -> str:
    """Returns what the chat template writes before an answer, such as an empty block of thoughts; mostly nothing.

    It belongs to what a model learns to write, and not to the answer.

    Raises:
        GossamerError: as `encode_prompt`.
    """
    if isinstance(sample.prompt, str):
        return ""
    try:
        begin, whole = _rendered(sample.prompt, sample.completion, tokenizer)
    except GossamerError as error:
        raise GossamerError(f"{sample.where}: {error}") from None
    before, found, _ = whole.removeprefix(begin).partition(sample.completion.strip())
    return before.strip() if found and whole.startswith(begin) else ""


def ended(tokens: list[int], ends: Collection[int]) -> list[int]:
    """Returns tokens up to the first of those that end a text, or with one behind them.

    Raises:
        GossamerError: there are none.
    """
    if not ends:
        raise GossamerError("the model has no token that ends a text, and a completion has to end")
    at = next((place for place, token in enumerate(tokens) if token in ends), None)
    return [*tokens, min(ends)] if at is None else tokens[: at + 1]


def _rendered(messages: list[dict[str, Any]], completion: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """What the chat template makes of messages: up to the answer, and with it."""
    answer = {"role": "assistant", "content": completion}
    return tokenizer.render(messages), tokenizer.render([*messages, answer], add_generation_prompt=False)


def _without_end(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] in tokenizer.eos_ids else tokens
