"""The simulation beside the scheduler itself, on a clock of the same step times, and beside queueing theory."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from checkout import ROOT
from fakes import FakeDecoder, FakeTokenizer
from gossamer.generation.cost import Table
from gossamer.generation.held import Held
from gossamer.generation.sampling_options import GENERATE
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import Scheduler
from gossamer.generation.sequence import Sequence
from gossamer.generation.stats import Stats

pytest.importorskip("simpy")

TABLE = Table((1, 4, 16), (0.010, 0.016, 0.030), (2e-6, 3e-6, 5e-6), 0.008, measured=True)
CONSTANT = Table((1, 16), (0.01, 0.01), (0.0, 0.0), 0.0, measured=True)


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("replicas")


class Clocked(FakeDecoder):
    """An engine whose steps take what a cost model says, on a clock of its own."""

    def __init__(self, seconds: Callable[[list[int], list[int]], float]) -> None:
        super().__init__(64)
        self.seconds = seconds
        self.now = 0.0

    def step(self, batch: Any, all_logits: bool = False) -> Any:
        batch = list(batch)
        contexts = [self.length(sequence) for sequence, _ in batch]
        logits = super().step(batch, all_logits)
        self.now += self.seconds([len(tokens) for _, tokens in batch], contexts)
        return logits


def scheduled(steps: Any, asked: list[tuple[float, int, int]], most: int) -> list[tuple[float, float]]:
    """When the scheduler has each text's first and last token, of texts that come at given times."""
    engine = Clocked(steps.seconds)
    tokenizer: Any = FakeTokenizer([f"{i}," for i in range(64)])
    tokenizer.eos_ids = frozenset()
    scheduler, ids, made = Scheduler(engine, most), itertools.count(), {}
    coming = list(asked)
    firsts: dict[int, float] = {}
    ends: dict[int, float] = {}
    while coming or scheduler.active or scheduler.waiting:
        if not scheduler.active and not scheduler.waiting:
            engine.now = max(engine.now, coming[0][0])
        while coming and coming[0][0] <= engine.now:
            number = len(made)
            _, prompt, answer = coming.pop(0)
            stats = Stats(prompt, 1, sampling=GENERATE.changed({"max_new_tokens": answer}))
            tokens = [(number * 7 + i * (number + 1)) % 64 for i in range(prompt)]  # no two begin alike
            task = Task(Sequence(tokens, tokenizer, stats, context=10**6), Held(engine, ids))
            made[id(task)] = number, task
            scheduler.add(task)
        for task, _ in scheduler.step():
            number, _ = made[id(task)]
            firsts.setdefault(number, engine.now)
            if task.done:
                ends[number] = engine.now
    return [(firsts[number], ends[number]) for number in range(len(asked))]


@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_texts_end_when_the_scheduler_has_them_end(replicas: ModuleType, most: int, seed: int) -> None:
    import simpy

    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.exponential(0.4, 40)).tolist()
    lengths = draw.integers(1, 400, 40).tolist()
    asked = [(at, n, int(draw.integers(1, 60))) for at, n in zip(times, lengths, strict=True)]
    steps = replicas.Steps(TABLE, ((1, 0.001),))
    expected = scheduled(steps, asked, most)
    env = simpy.Environment()
    replica = replicas.Replica(env, steps, most)
    texts = []

    def come() -> Any:
        for at, prompt, answer in asked:
            yield env.timeout(at - env.now)
            texts.append(replicas.Text(prompt, answer, env.now))
            replica.add(texts[-1])

    env.process(come())
    env.run()
    np.testing.assert_allclose([(text.first, text.ended) for text in texts], expected, rtol=1e-9)


def test_one_text_at_a_time_waits_as_a_queue_of_even_work_does(replicas: ModuleType) -> None:
    steps = replicas.Steps(CONSTANT)
    work, busy = 20 * 0.01, 0.6  # a step of the prompt's token gives the first of twenty
    load = replicas.Load(busy / work, [1], [20])
    played = replicas.play(steps, load, 1, 20000, most=1)
    mean = float(np.mean([text.ended - text.came for text in played.texts]))
    assert mean == pytest.approx(work * (1 + busy / (2 * (1 - busy))), rel=0.05)  # Pollaczek-Khinchine
    assert played.tokens_per_second == pytest.approx(load.tokens, rel=0.02)


def test_an_idle_replica_takes_what_its_steps_take(replicas: ModuleType) -> None:
    steps = replicas.Steps(TABLE)
    played = replicas.play(steps, replicas.Load(0.001, [300], [5]), 2, 10)
    prompt = steps.seconds([256], [0]) + steps.seconds([44], [256])
    rest = sum(steps.seconds([1], [context]) for context in range(300, 304))
    assert played.first_token() == pytest.approx(prompt)
    assert played.latency() == pytest.approx(prompt + rest)


def test_a_load_that_is_too_much_is_answered_at_what_replicas_can_do(replicas: ModuleType) -> None:
    steps = replicas.Steps(CONSTANT)
    played = replicas.play(steps, replicas.Load(1000.0, [1], [50]), 3, 3000)
    assert played.tokens_per_second <= 3 * 16 / 0.01
    assert played.machine_hours >= 1e6 / (3600 * 16 / 0.01)
    full = replicas.play(steps, replicas.Load(90.0, [1], [50]), 3, 6000)
    assert full.tokens_per_second == pytest.approx(90 * 50, rel=0.1)


def test_replicas_needed(replicas: ModuleType) -> None:
    steps = replicas.Steps(CONSTANT)
    load = replicas.Load(60.0, [1], [100])  # 6000 tokens/s of 1600 that one writes at most: a second alone
    found = replicas.needed(steps, load, 1.5, texts=600)
    assert found is not None
    assert 4 <= found <= 8
    assert replicas.play(steps, load, found, 600).latency() <= 1.5
    assert replicas.play(steps, load, found - 1, 600).latency() > 1.5
    assert replicas.needed(steps, load, 0.5, texts=100, limit=20) is None  # less than one text takes alone
