"""Many prompts at once: their texts, whatever company each has."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..errors import GossamerError
from .drafts import guessing
from .prompts import asked, chats, task, text_after
from .sampling_options import SamplingOptions
from .scheduled import Task
from .scheduler import MOST, Scheduler

if TYPE_CHECKING:
    from ..progress import Progress
    from ..text.messages import Message
    from .adapters import Chosen
    from .completion import Completion
    from .drafts import Draft
    from .model import Model


@dataclass(frozen=True)
class Request:
    """What is asked of a model.

    Attributes:
        prompt: Text, or chat messages.
        sampling: All options.
        chat: As of `Model.stream`.
        draw: Requests of the same options but another number are drawn with other random numbers.
        adapters: As of `Model.stream`.
        cancel: As of `Model.stream`.
    """

    prompt: str | Sequence[Message]
    sampling: SamplingOptions
    chat: bool | None = None
    draw: int = 0
    adapters: Chosen = None
    cancel: Callable[[], bool] | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        number: Of the request, from 0.
        completion: The text, as far as it came; None where it never began.
        error: Why there is no more text; None where all went well.
    """

    number: int
    completion: Completion | None
    error: GossamerError | None = None


def answers(
    model: Model,
    requests: Iterable[Request | GossamerError],
    *,
    most: int = MOST,
    first: int = 0,
    draft: Draft = "auto",
) -> Iterator[Answer]:
    """Answers requests, some at once, taking them as there is room.

    Args:
        model: The model.
        requests: What is asked; an error is answered by itself.
        most: Texts at once.
        first: Number of the first request.
        draft: As of `Model.stream`.

    Returns:
        An answer for each, in the order of the requests. Closing the iterator drops what is not done.

    Raises:
        GossamerError: `most` is out of range.
    """
    scheduler = Scheduler(model.decoder, most, guessing(model, draft))
    return _answers(model, scheduler, requests, first)


def _answers(
    model: Model, scheduler: Scheduler, requests: Iterable[Request | GossamerError], first: int
) -> Iterator[Answer]:
    # Beams share steps, and the cache, with nobody.
    try:
        for beams, part in itertools.groupby(enumerate(requests, first), lambda numbered: _has_beams(numbered[1])):
            if beams:
                yield from itertools.starmap(partial(_by_beams, model), part)
            else:
                yield from _together(model, scheduler, part)
    finally:
        scheduler.close()


def _has_beams(request: Request | GossamerError) -> bool:
    return isinstance(request, Request) and request.sampling.beams > 1


def _by_beams(model: Model, number: int, request: Request | GossamerError) -> Answer:
    assert isinstance(request, Request)
    try:
        return Answer(number, beam_answer(model, request, 1)[0])
    except GossamerError as error:
        return Answer(number, None, error)


def _together(
    model: Model, scheduler: Scheduler, requests: Iterator[tuple[int, Request | GossamerError]]
) -> Iterator[Answer]:
    """Answers numbered requests side by side."""
    waiting: deque[int] = deque()  # numbers, in order
    done: dict[int, Answer] = {}
    numbers: dict[Task, int] = {}
    pieces: dict[Task, list[str]] = {}

    def tasks() -> Iterator[Task]:
        for number, request in requests:
            waiting.append(number)
            try:
                made = _task(model, request)
            except GossamerError as error:
                done[number] = Answer(number, None, error)
                continue
            numbers[made], pieces[made] = number, []
            yield made

    def ready() -> Iterator[Answer]:
        while waiting and waiting[0] in done:
            yield done.pop(waiting.popleft())

    for text, piece in scheduler.run(tasks()):
        pieces[text].append(piece)
        if text.done:
            number = numbers.pop(text)
            done[number] = Answer(number, text.text.completion("".join(pieces.pop(text))), text.error)
        yield from ready()
    yield from ready()


def _task(model: Model, request: Request | GossamerError) -> Task:
    if isinstance(request, GossamerError):
        raise request
    wrapped = chats(model, request.prompt, request.chat)
    tokens, reads = asked(model, request.prompt, wrapped, request.sampling.context_shift is not None)
    return task(
        model, tokens, request.sampling, request.draw, wrapped, request.adapters, cancel=request.cancel, reads=reads
    )


def texts(model: Model, requests: Sequence[Request], most: int, draft: Draft, progress: Progress | None) -> list[str]:
    """Answers requests; see `Model.generate_batch`."""
    found: list[str] = []
    for answer in answers(model, requests, most=most, draft=draft):
        if answer.error is not None:
            raise GossamerError(f"prompt {answer.number + 1}: {answer.error}") from answer.error
        assert answer.completion is not None
        found.append(answer.completion.text)
        if progress is not None:
            progress(len(found), len(requests), "answering")
    return found


def completions(model: Model, request: Request, n: int, most: int, draft: Draft) -> list[Completion]:
    """Writes n texts after a prompt; see `Model.completions`."""
    draft = guessing(model, draft, request.sampling)
    if request.sampling.beams > 1:
        found = beam_answer(model, request, n)
    else:
        found, drawn = [], [replace(request, draw=draw) for draw in range(n)]
        for answer in answers(model, drawn, most=min(n, most), draft=draft):
            if answer.error is not None or answer.completion is None:
                raise answer.error or GossamerError("there is no text")
            found.append(answer.completion)
    model.last_stats = found[-1].stats
    return found


def beam_answer(model: Model, request: Request, n: int) -> list[Completion]:
    """Returns the n best texts that are found with beams.

    Raises:
        GossamerError: as `Model.stream`, or there are fewer beams.
    """
    from .beam_texts import beam_completions

    wrapped, mix = chats(model, request.prompt, request.chat), model.mix(request.adapters)
    prompt, reads = asked(model, request.prompt, wrapped)
    held = model._new_sequence(mix, reads)
    try:
        texts = [text_after(model, prompt, request.sampling, request.draw, wrapped, mix) for _ in range(n)]
        return beam_completions(model, held, texts, request.cancel)
    finally:
        held.free()
