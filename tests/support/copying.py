"""An engine that copies, and texts over it: what drafts are tested with."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from fakes import FakeTokenizer
from gossamer._core import CacheFull
from gossamer.generation.cost import StepCost, Table
from gossamer.generation.drafts import Drafts
from gossamer.generation.held import Held
from gossamer.generation.ngrams import Corpus
from gossamer.generation.sampling_options import GENERATE
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import Scheduler
from gossamer.generation.sequence import Sequence
from gossamer.generation.stats import Stats

CONTEXT = 300


def free_steps(more: float = 0.0) -> StepCost:
    """Steps of a second whose further tokens cost so many."""
    return StepCost(Table((1, 16), (1.0, 1.0 + 15 * more), (0.0, 0.0), 0.5, measured=True))


class Stubborn(StepCost):
    """Costs that do not follow what steps take, so that a test does not depend on the machine."""

    def observe(self, counts: Any, contexts: Any, seconds: float) -> None:  # noqa: ARG002
        assert seconds > 0


def drafts(more: float = 0.0, kind: str = "auto", corpus: Corpus | None = None) -> Drafts:
    return Drafts(Stubborn(free_steps(more).table), kind, corpus)


class Copying:
    """An engine whose logits say again what was said `period` tokens before, mostly, and otherwise something else."""

    def __init__(self, vocab: int, period: int, slips: float = 0.0) -> None:
        self.vocab, self.period, self.slips = vocab, period, slips
        self.held: dict[int, list[int]] = {}
        self.steps: list[list[int]] = []
        self.kv_limit = 0
        self.kv_bytes = 0
        self.threads = 1
        self.most_tokens = 10**9

    def step(self, batch: Any, all_logits: bool = False) -> Any:
        if sum(len(tokens) for _, tokens in batch) > self.most_tokens:
            raise CacheFull("there is no room")
        self.steps.append([len(tokens) for _, tokens in batch])
        rows = []
        for sequence, tokens in batch:
            held = self.held.setdefault(sequence, [])
            for token in np.asarray(tokens).tolist():
                held.append(token)
                rows.append(self.row(held))
            if not all_logits:
                del rows[-len(tokens) : -1]
        return np.stack(rows)

    def row(self, held: list[int]) -> Any:
        rng = np.random.default_rng([len(held), *held[-3:]])
        row = rng.standard_normal(self.vocab).astype(np.float32)
        if rng.random() >= self.slips and len(held) >= self.period:
            row[held[-self.period]] += 6
        return row

    def rollback(self, sequence: int, n: int) -> None:
        assert 0 < n <= len(self.held[sequence])
        del self.held[sequence][-n:]

    def shortest(self, sequence: int) -> int:  # noqa: ARG002
        return 0

    def free(self, sequence: int) -> None:
        self.held.pop(sequence, None)

    def length(self, sequence: int) -> int:
        return len(self.held.get(sequence, []))

    def fork(self, seq: int, to: int, length: int) -> None:
        self.held[to] = self.held[seq][:length]


class Texts:
    def __init__(self, engine: Any, vocab: int, words: list[str] | None = None) -> None:
        self.engine = engine
        self.ids = itertools.count()
        self.tokenizer: Any = FakeTokenizer(words or [f"{i}," for i in range(vocab)])
        self.tokenizer.eos_ids = frozenset({7})

    def task(self, prompt: list[int], **options: Any) -> Task:
        stats = Stats(len(prompt), 1, sampling=GENERATE.changed({"max_new_tokens": 60, **options}))
        return Task(Sequence(prompt, self.tokenizer, stats, context=CONTEXT), Held(self.engine, self.ids), keep=True)

    def run(self, tasks: list[Task], guesses: Drafts | None, most: int = 16) -> list[list[str]]:
        pieces: dict[int, list[str]] = {id(task): [] for task in tasks}
        for task, piece in Scheduler(self.engine, most, guesses).run(tasks):
            pieces[id(task)].append(piece)
        return [pieces[id(task)] for task in tasks]


def prompts(count: int, seed: int, vocab: int, length: int = 24) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(8, vocab, length).tolist() for _ in range(count)]
