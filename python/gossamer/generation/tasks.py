"""How well a model does a task: its answers to prompts, measured against the right ones."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..progress import Progress
from ..text.metrics import Score, check_answers, score, standard_error, total
from ..text.tasks import TaskSample, encode_prompt, opening
from .sampling_options import SamplingOptions

if TYPE_CHECKING:
    from .model import Model

BATCH = 16
_SPARE = 16  # tokens beyond the longest right answer that an answer may have


@dataclass(frozen=True)
class Answer:
    """What a model wrote for a sample.

    Attributes:
        sample: The sample.
        text: The answer.
        exact: Its score by exact match.
        score: By the metric that was asked for.
    """

    sample: TaskSample
    text: str
    exact: Score
    score: Score

    def to_dict(self) -> dict[str, Any]:
        """Returns it ready for JSON, for what compares models sample by sample."""
        return {
            "where": self.sample.where,
            **self.sample.about,
            "prompt": self.sample.prompt,
            "right": list(self.sample.answers),
            "answer": self.text,
            "exact": bool(self.exact.points),
            "points": self.score.points,
            "units": self.score.units,
        }


@dataclass(frozen=True)
class TaskResult:
    """What `evaluate_task` measured.

    Attributes:
        metric: Name of the metric.
        value: Over all samples.
        error: Its standard error.
        exact: Share of answers that are right as they stand.
        answers: Each.
        max_new_tokens: Most tokens of an answer.
        seconds: Wall-clock time.
    """

    metric: str
    value: float
    error: float
    exact: float
    answers: list[Answer]
    max_new_tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures ready for JSON; an error that is not known is null."""
        return {
            "metric": self.metric,
            "value": self.value,
            "standard_error": None if math.isnan(self.error) else self.error,
            "exact": self.exact,
            "samples": len(self.answers),
            "max_new_tokens": self.max_new_tokens,
            "seconds": self.seconds,
        }


def evaluate_task(
    model: Model,
    samples: Sequence[TaskSample],
    *,
    metric: str = "exact",
    max_new_tokens: int | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> TaskResult:
    """Lets a model answer every prompt, always with its likeliest token but for its `bad_words`, and measures that.

    Args:
        model: The model.
        samples: What to answer.
        metric: One of `gossamer.text.metrics.METRICS`.
        max_new_tokens: Most tokens of an answer; None takes those of the longest right one and 16 more.
        batch: Prompts that are answered at once.
        progress: Called with (samples done, samples, what).

    Raises:
        GossamerError: there are no samples, no such metric, or a sample that does not fit the model or the metric.
    """
    started = time.perf_counter()
    if not samples:
        raise GossamerError("there are no samples to answer")
    check_answers(metric, samples)
    tokenizer, context = model.tokenizer, model.config.context
    encode = partial(tokenizer.encode, special=False)
    for sample in samples:
        if sample.audio is not None:
            if max_new_tokens is not None:
                raise GossamerError(f"{sample.where}: is sound, which max_new_tokens is not for")
            continue
        length = len(encode_prompt(sample, tokenizer))
        if length > context:
            raise GossamerError(
                f"{sample.where}: the prompt has {length} tokens, and the model's context holds {context}"
            )
    openings = [opening(sample, tokenizer) for sample in samples]
    if max_new_tokens is None:
        answers = (text for sample in samples for text in sample.answers)
        longest = max(len(encode(text)) for text in answers) + max(len(encode(text)) for text in openings)
        max_new_tokens = longest + _SPARE
    found = []
    written = _answers(model, samples, max_new_tokens, batch, progress)
    for sample, before, whole in zip(samples, openings, written, strict=True):
        opened = before and whole.lstrip().startswith(before)
        text = whole.lstrip().removeprefix(before).lstrip() if opened else whole
        exact, own = (score(name, text, sample.answers, encode) for name in ("exact", metric))
        found.append(Answer(sample, text, exact, own))
    scores = [answer.score for answer in found]
    return TaskResult(
        metric,
        total(scores),
        standard_error(scores),
        total([answer.exact for answer in found]),
        found,
        max_new_tokens,
        time.perf_counter() - started,
    )


def _answers(
    model: Model, samples: Sequence[TaskSample], most: int, batch: int, progress: Progress | None
) -> list[str]:
    """The model's answers to prompts; those of chats and others come from calls of their own."""
    # The model's own defaults may draw; what it says may never be written holds however a token is chosen.
    options = SamplingOptions(max_new_tokens=most, bad_words=model.defaults().bad_words)
    texts, done = [""] * len(samples), 0
    for place, sample in enumerate(samples):
        if sample.audio is None:
            continue
        try:
            heard = model.transcribe(sample.audio, language=sample.language, temperatures=(0.0,))
        except GossamerError as error:
            raise GossamerError(f"{sample.where}: {error}") from None
        texts[place], done = heard.text, done + 1
        if progress is not None:
            progress(done, len(samples), "answering")
    for chat in (False, True):
        places = [place for place, sample in enumerate(samples) if sample.chats == chat and sample.audio is None]
        told = None if progress is None else partial(_told, progress, done, len(samples))
        prompts = [samples[place].prompt for place in places]
        answers = model.generate_batch(prompts, options, chat=chat, most=batch, progress=told)
        for place, text in zip(places, answers, strict=True):
            texts[place] = text
        done += len(places)
    return texts


def _told(progress: Progress, before: int, total: int, done: int, _total: int, what: str) -> None:
    progress(before + done, total, what)
