"""`Exchange`: one request's texts from admission to their ends, whatever form the answer has."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..generation.prompts import TooLong, task
from ..generation.scheduler import never_fits
from .engine_thread import Event, Reply
from .errors import ApiError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..generation.sampling_options import SamplingOptions
    from ..generation.scheduled import Task
    from ..generation.stats import Stats
    from .engine_thread import EngineThread
    from .metrics import Metrics
    from .served import Served
    from .settings import Settings


Encoded = tuple[list[int], "NDArray[np.int32] | None"]


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        name: Of the model, as the client wrote it.
        served: The model.
        adapters: That the name stands for.
        sampling: How tokens are chosen.
        encode: Makes the tokens of each prompt, and those of the input that is read by way of an encoder, where the
            model has one; runs in a thread.
        prompts: How many there are.
        param: The parameter that prompts are in, for errors.
        choices: Texts for each prompt.
        begins: Whether a text begins with what is written, and does not go on with the prompt's.
        special: Whether special tokens are part of the text.
        schema_param: The parameter that has the schema that texts are held to, for errors.
    """

    name: str
    served: Served
    adapters: tuple[str, ...]
    sampling: SamplingOptions
    encode: Callable[[], list[Encoded]]
    prompts: int = 1
    param: str = "messages"
    choices: int = 1
    begins: bool = True
    special: bool = False
    schema_param: str = "response_format"


@dataclass
class Exchange:
    """A request's texts.

    Attributes:
        asked: What is asked for.
        engine: Steps the model.
        settings: The server's.
        metrics: The server's.
        log: What the request's line in the log tells.
        prefix: Of the id.
    """

    asked: Asked
    engine: EngineThread
    settings: Settings
    metrics: Metrics
    log: dict[str, Any]
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    _start: float = field(default_factory=time.perf_counter)
    _reply: Reply | None = None
    _going: set[int] = field(default_factory=set)  # texts of which more is to come
    _closed: bool = False

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.log.update(id=self.id, model=self.asked.name)

    async def begin(self) -> None:
        """Takes the texts on and hands them to the engine.

        Raises:
            ApiError: there are too many already, or a prompt is no good.
        """
        asked, served = self.asked, self.asked.served
        texts = asked.prompts * asked.choices
        served.admit(texts)
        try:
            tasks = await served.compute(self._tasks)
        except BaseException:
            served.release(texts)
            raise
        self._reply = Reply(served, tasks)
        self._going = set(range(texts))
        self.engine.submit(self._reply)

    async def events(self) -> AsyncIterator[Event]:
        """Gives what comes of the texts, until all have ended.

        Raises:
            ApiError: a text failed.
        """
        assert self._reply is not None
        while self._going:
            event = await self._reply.events.get()
            if event.index not in self._going:
                continue
            if event.tokens and "first_token_seconds" not in self.log:
                seconds = time.perf_counter() - self._start
                self.log["first_token_seconds"] = round(seconds, 4)
                self.metrics.first_token(self.asked.served.name, seconds)
            if event.error:
                raise ApiError(503 if event.error.startswith(STOPPING) else 500, event.error)
            if event.last:
                self._going.discard(event.index)
            yield event

    def cut(self, index: int) -> None:
        """Ends a text that has said all that is wanted."""
        assert self._reply is not None
        self._going.discard(index)
        self.engine.cancel(self._reply, index)

    def close(self) -> None:
        """Drops what has not ended, and counts what was done; once, however often it is called."""
        if self._reply is None or self._closed:
            return
        self._closed = True
        self.engine.cancel(self._reply)
        served = self.asked.served
        for stats in self.stats:
            if stats.new_tokens:
                served.took(stats.prefill_seconds + stats.decode_seconds)
            self.metrics.text(served.name, stats)
        usage = self.usage()
        self.log.update(
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            finish=",".join(stats.finish for stats in self.stats),
        )

    @property
    def stats(self) -> list[Stats]:
        """Of each text."""
        return [] if self._reply is None else [task.text.stats for task in self._reply.tasks]

    def usage(self) -> dict[str, Any]:
        """Returns OpenAI's `usage`: a prompt counts once, however many texts follow it."""
        stats = self.stats
        prompts = stats[:: self.asked.choices]
        prompt, completion = sum(each.prompt_tokens for each in prompts), sum(each.new_tokens for each in stats)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(each.reused_tokens for each in prompts)},
        }

    def _tasks(self) -> list[Task]:
        """Makes the texts, in the model's thread."""
        asked, model = self.asked, self.asked.served.model
        try:
            prompts = asked.encode()
            for prompt, _ in prompts:
                self._check(prompt)
            return [
                task(
                    model,
                    prompt,
                    asked.sampling,
                    number * asked.choices + choice,
                    asked.begins,
                    asked.adapters,
                    special=asked.special,
                    reads=reads,
                )
                for number, (prompt, reads) in enumerate(prompts)
                for choice in range(asked.choices)
            ]
        except TooLong as error:
            raise ApiError(400, str(error), param=asked.param, code="context_length_exceeded") from None
        except GossamerError as error:
            if asked.sampling.schema is not None and str(error).startswith("schema"):
                raise ApiError(400, str(error), param=asked.schema_param, code="invalid_json_schema") from None
            raise ApiError(400, str(error), param=asked.param, code="invalid_value") from None

    def _check(self, prompt: Sequence[int]) -> None:
        model, most = self.asked.served.model, self.settings.max_prompt
        if 0 < most < len(prompt):
            raise TooLong(f"the prompt has {len(prompt)} tokens, and this server takes {most}")
        if why := never_fits(model.decoder, len(prompt) + 1):
            raise TooLong(f"the prompt has {len(prompt)} tokens, and {why}")


STOPPING = "the server is stopping"
