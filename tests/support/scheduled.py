"""Texts over a small native engine for the scheduler, and the oracle: what each says alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from engine_cases import VOCAB, config, decoder
from fakes import FakeTokenizer
from gossamer import _core
from gossamer.engine import Mix
from gossamer.generation.held import Held
from gossamer.generation.sampling_options import GENERATE
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import Scheduler
from gossamer.generation.sequence import Sequence
from gossamer.generation.stats import Stats

PAGE = 64
CONTEXT = 300


class Counted:
    """An engine that keeps what its steps were given, and fails where more is cached than may be."""

    def __init__(self, engine: _core.Decoder) -> None:
        self.engine = engine
        self.steps: list[dict[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, batch: Any, all_logits: bool = False) -> Any:
        logits = self.engine.step(batch, all_logits)
        self.steps.append({seq: len(tokens) for seq, tokens in batch})
        assert self.engine.kv_limit == 0 or self.engine.kv_bytes <= self.engine.kv_limit
        return logits

    @property
    def computed(self) -> int:
        return sum(sum(step.values()) for step in self.steps)


def native(pages: int = 0, **options: Any) -> Any:
    made = decoder(config(context=CONTEXT), type="int8", threads=1)
    if pages:
        limit = pages * made.kv_bytes_of(1, 1)
        made = decoder(config(context=CONTEXT), type="int8", threads=1, kv_limit=limit, **options)
    return Counted(made)


class Texts:
    """Tasks over one engine, with ids of their own."""

    def __init__(self, engine: Any, context: int = CONTEXT) -> None:
        self.engine = engine
        self.context = context
        self.ids = itertools.count()

    def task(self, prompt: list[int], **options: Any) -> Task:
        stats = Stats(len(prompt), 1, sampling=GENERATE.changed({"max_new_tokens": 20, **options}))
        tokenizer: Any = FakeTokenizer([f"{i}," for i in range(VOCAB)])
        tokenizer.eos_ids = frozenset({7})
        return Task(Sequence(prompt, tokenizer, stats, context=self.context), Held(self.engine, self.ids))

    def alone(self, prompt: list[int], mix: Mix = (), **options: Any) -> list[int]:
        """The tokens of a text that has no company: the oracle."""
        task = self.task(prompt, **options)
        task.held.adapt(mix)
        scheduler = Scheduler(self.engine, 1)
        scheduler.add(task)
        while not task.done:
            scheduler.step()
        assert task.error is None
        return task.text.tokens


def prompts(count: int, seed: int, longest: int = 90) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(8, VOCAB, rng.integers(1, longest)).tolist() for _ in range(count)]


def finished(scheduler: Scheduler, tasks: list[Task]) -> list[Task]:
    """Runs tasks; returns them in the order in which they ended."""
    return [task for task, _ in scheduler.run(tasks) if task.done]
