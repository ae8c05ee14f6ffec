"""Rows of prompts, wherever they lie: what each asks for, and what is written of its answer."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError, did_you_mean
from ..files import parse_json
from ..text.messages import checked
from .batch import Answer, Request
from .sampling_options import SamplingOptions

if TYPE_CHECKING:
    from .model import Model

Row = dict[str, Any] | GossamerError
"""A row's object, or what is wrong with it."""

_OPTIONS = tuple(field.name for field in fields(SamplingOptions))
_KNOWN = ("id", "prompt", "messages", *_OPTIONS)


class Rows:
    """What rows ask of a model; of those that are not answered it keeps what the answer repeats."""

    def __init__(self, model: Model, sampling: SamplingOptions, chat: bool | None, system: str | None) -> None:
        """Makes one.

        Args:
            model: The model.
            sampling: The options of rows that have none of their own.
            chat: As of `Model.stream`, for rows with a prompt.
            system: A system message for rows that have none.

        Raises:
            GossamerError: the model knows no system message.
        """
        if system is not None and not model.tokenizer.has_chat_template:
            raise GossamerError(f"{model.info.get('name', 'the model')} has no chat template, and so no system message")
        self._sampling = sampling
        self._chat = chat
        self._system = system
        self._asked: dict[int, dict[str, Any]] = {}

    def request(self, number: int, row: Row) -> Request | GossamerError:
        """Returns what a row asks for, or what is wrong with it.

        Args:
            number: Of the row, from 0; rows of the same options but another number are drawn with other numbers.
            row: The row.
        """
        if isinstance(row, GossamerError):
            return row
        try:
            if "id" in row and (isinstance(row["id"], bool) or not isinstance(row["id"], (str, int))):
                raise GossamerError(f"id must be a text or a whole number, got {row['id']!r:.80}")
            self._asked[number] = {name: row[name] for name in ("id", "prompt", "messages") if name in row}
            own = {name: row[name] for name in _OPTIONS if name in row}
            sampling = self._sampling.changed(own)
            # A seed of the row's own draws what `generate` draws with it.
            prompt = self._prompt(row)
            chat = self._chat if isinstance(prompt, str) else None
            return Request(prompt, sampling, chat, 0 if "seed" in own else number)
        except GossamerError as error:
            return error

    def record(self, answer: Answer) -> dict[str, Any]:
        """Returns what is written of an answer."""
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

    def _prompt(self, row: dict[str, Any]) -> str | list[dict[str, Any]]:
        """The prompt or the messages of a row, behind the system message where there is one."""
        for name in row:
            if name not in _KNOWN:
                raise GossamerError(f"{name!r:.80} is no key of a line{did_you_mean(name, _KNOWN)}")
        if ("prompt" in row) == ("messages" in row):
            raise GossamerError("a line must have either prompt or messages")
        if "prompt" in row:
            prompt = row["prompt"]
            if not isinstance(prompt, str):
                raise GossamerError(f"prompt must be a text, got {prompt!r:.80}")
            if self._system is None:
                return prompt
            return [{"role": "system", "content": self._system}, {"role": "user", "content": prompt}]
        messages = checked(row["messages"])
        if self._system is None or any(message["role"] == "system" for message in messages):
            return messages
        return [{"role": "system", "content": self._system}, *messages]


def read_row(line: bytes) -> Row:
    """Returns the object of a line of JSON, or what is wrong with it."""
    if not line.strip():
        return GossamerError("the line is empty")
    try:
        value = parse_json(line.decode())
        json.dumps(value, allow_nan=False)
    except UnicodeDecodeError as error:
        return GossamerError(f"not UTF-8: {error.reason} at byte {error.start + 1}")
    except ValueError as error:
        return GossamerError(f"not valid JSON: {error}")
    if not isinstance(value, dict):
        return GossamerError(f"a line must be a JSON object with prompt or messages, got {value!r:.80}")
    return value
