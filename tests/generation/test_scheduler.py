"""Many texts over one engine: what each says, who shares, who waits, and that nothing of them stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from actions import KINDS, SETUPS, Actions
from copying import drafts
from gossamer import _core
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import STEP_TOKENS, Scheduler
from scheduled import CONTEXT, PAGE, Counted, Texts, finished, native, prompts
from windowed import CONTEXT as LONG
from windowed import windowed_decoder


@pytest.mark.parametrize("most", [1, 3, 16])
def test_a_text_is_the_same_alone_and_in_company(most: int) -> None:
    texts = Texts(native())
    asked = [(prompt, 1 + 3 * i) for i, prompt in enumerate(prompts(20, seed=most))]
    expected = [texts.alone(prompt, max_new_tokens=count) for prompt, count in asked]
    tasks = [texts.task(prompt, max_new_tokens=count) for prompt, count in asked]
    assert len(finished(Scheduler(texts.engine, most), tasks)) == 20
    assert [task.text.tokens for task in tasks] == expected
    assert texts.engine.kv_bytes == 0


def test_long_texts_are_the_same_alone_and_in_company() -> None:
    texts = Texts(native())
    options = {"max_new_tokens": 256, "logit_bias": {7: -100.0}}  # none ends by itself
    asked = prompts(20, seed=3, longest=40)
    expected = [texts.alone(prompt, **options) for prompt in asked]
    assert all(len(tokens) - len(prompt) == 256 for prompt, tokens in zip(asked, expected, strict=True))
    tasks = [texts.task(prompt, **options) for prompt in asked]
    assert len(finished(Scheduler(texts.engine), tasks)) == 20
    assert [task.text.tokens for task in tasks] == expected


@pytest.mark.parametrize("keep", [0, 4, 150])
def test_a_full_context_drops_its_older_half_and_goes_on(keep: int) -> None:
    """As if there had been no more: against logits of what is left, computed from nothing for every token."""
    texts = Texts(native())
    options = {"max_new_tokens": 260, "context_shift": keep, "logit_bias": {7: -100.0}}
    (prompt,) = prompts(1, seed=keep)
    prompt += list(range(10, 140)) + list(range(20, 100))
    found = texts.alone(prompt, **options)
    window, lengths = list(prompt), []
    for token in found[len(prompt) :]:
        assert len(window) <= CONTEXT
        logits = texts.engine.step([(999, window)])[0]
        texts.engine.free(999)
        logits[7] -= 100
        assert token == np.argmax(logits)
        full = len(window) == CONTEXT
        window.append(token)
        if full:
            rest = window[keep:]
            window = window[:keep] + rest[(len(rest) + 1) // 2 :]
            lengths.append(len(window))
    assert len(lengths) >= 2
    company = [texts.task(prompt, **options), *(texts.task([20 + i] * 290, **options) for i in range(2))]
    ended = finished(Scheduler(texts.engine, 3, drafts()), company)
    assert company[0].text.tokens == found
    assert company[0].text.stats.context_shifts == len(lengths)
    assert [task.text.finish for task in ended] == ["length"] * 3
    assert sum(task.text.stats.steps.accepted for task in ended) > 0
    assert texts.engine.kv_bytes == 0


def test_drawn_texts_are_the_same_alone_and_in_company() -> None:
    texts = Texts(native())
    asked = [(prompt, {"temperature": 1.0, "seed": seed}) for seed, prompt in enumerate(prompts(8, seed=5))]
    expected = [texts.alone(prompt, **options) for prompt, options in asked]
    tasks = [texts.task(prompt, **options) for prompt, options in asked]
    finished(Scheduler(texts.engine, 4), tasks)
    assert [task.text.tokens for task in tasks] == expected


def test_prompts_come_in_beside_those_who_write_and_nobody_stalls() -> None:
    texts = Texts(native())
    scheduler = Scheduler(texts.engine, 4)
    writer = texts.task(list(range(10, 20)), max_new_tokens=30)
    scheduler.add(writer)
    scheduler.step()
    late = [texts.task([i + 20] * 280, max_new_tokens=5) for i in range(3)]
    for task in late:
        scheduler.add(task)
    before = len(writer.text.tokens)
    steps = 0
    while any(task.text.stats.new_tokens == 0 for task in late):
        written = [task for task, _ in scheduler.step()]
        steps += 1
        assert writer in written
        assert len(writer.text.tokens) == before + steps
    assert steps == 4, "840 tokens of prompts, 255 a step beside the writer's"
    assert max(sum(step.values()) for step in texts.engine.steps) == STEP_TOKENS


def test_a_single_text_sees_its_prompt_whole() -> None:
    texts = Texts(native())
    texts.alone(list(range(8, 128)) * 2, max_new_tokens=2)
    assert [list(step.values()) for step in texts.engine.steps] == [[240], [1]]


def test_common_beginnings_are_computed_once() -> None:
    texts = Texts(native())
    system = list(range(8, 128))
    asked = [[*system, 20 + i, 30] for i in range(6)]
    expected = [texts.alone(prompt, max_new_tokens=4) for prompt in asked]
    texts.engine.steps.clear()
    for most in (6, 2, 1):
        tasks = [texts.task(prompt, max_new_tokens=4) for prompt in asked]
        finished(Scheduler(texts.engine, most), tasks)
        assert [task.text.tokens for task in tasks] == expected
        assert [task.text.stats.reused_tokens for task in tasks] == [0, 120, 120, 120, 120, 120], most
        written = sum(task.text.stats.new_tokens - 1 for task in tasks)
        assert texts.engine.computed == 120 + 6 * 2 + written
        assert texts.engine.kv_bytes == 0
        texts.engine.steps.clear()


def test_the_same_prompt_again_takes_all_but_its_last_token() -> None:
    texts = Texts(native())
    prompt = list(range(8, 100))
    tasks = [texts.task(prompt, max_new_tokens=3) for _ in range(4)]
    finished(Scheduler(texts.engine, 4), tasks)
    assert [task.text.stats.reused_tokens for task in tasks] == [0, 91, 91, 91]
    assert len({tuple(task.text.tokens) for task in tasks}) == 1


def test_short_common_beginnings_are_not_waited_for() -> None:
    texts = Texts(native())
    tasks = [texts.task([8, 9, 10, 20 + i], max_new_tokens=2) for i in range(5)]
    finished(Scheduler(texts.engine, 5), tasks)
    assert len(texts.engine.steps) == 2


def test_a_full_cache_is_a_queue() -> None:
    texts = Texts(native(pages=6))
    asked = prompts(14, seed=11)
    expected = [texts.alone(prompt, max_new_tokens=70) for prompt in asked]
    tasks = [texts.task(prompt, max_new_tokens=70) for prompt in asked]
    assert len(finished(Scheduler(texts.engine, 8), tasks)) == 14
    assert [task.error for task in tasks] == [None] * 14
    assert [task.text.tokens for task in tasks] == expected
    assert texts.engine.kv_bytes == 0
    assert max(map(len, texts.engine.steps)) > 2, "several fit at once"


def test_texts_that_grow_beyond_the_cache_take_turns() -> None:
    """Prompts fit side by side, what is written does not: the youngest goes back and loses nothing but time."""
    texts = Texts(native(pages=4))
    asked = [[20 + i] * 50 for i in range(4)]
    expected = [texts.alone(prompt, max_new_tokens=100) for prompt in asked]
    assert any(len(tokens) > 2 * PAGE for tokens in expected)
    tasks = [texts.task(prompt, max_new_tokens=100) for prompt in asked]
    scheduler = Scheduler(texts.engine, 4)
    back = 0
    for task in tasks:
        scheduler.add(task)
    while scheduler.active or scheduler.waiting:
        before = scheduler.active
        done = [task for task, _ in scheduler.step() if task.done]
        back += scheduler.active < before - len(done)
    assert back > 0
    assert [task.text.tokens for task in tasks] == expected
    assert texts.engine.kv_bytes == 0


def test_what_never_fits_fails_alone() -> None:
    texts = Texts(native(pages=2))
    small = [[20 + i] * 30 for i in range(3)]
    expected = [texts.alone(prompt) for prompt in small]
    tasks = [texts.task(prompt) for prompt in small]
    never = texts.task([9] * (2 * PAGE + 1))
    grows = texts.task([25] * (2 * PAGE - 3), max_new_tokens=40)
    finished(Scheduler(texts.engine, 4), [tasks[0], never, tasks[1], grows, tasks[2]])
    assert [task.text.tokens for task in tasks] == expected
    page = texts.engine.kv_bytes_of(1, 1)
    assert str(never.error) == (
        f"the text's 129 tokens take {3 * page} bytes of keys and values, and kv_limit is {2 * page}"
    )
    assert str(grows.error).startswith("the text's 129 tokens do not fit, even alone: the KV cache is at its limit")
    assert len(grows.text.tokens) == 129
    assert texts.engine.kv_bytes == 0


@pytest.mark.parametrize("most", [1, 4])
def test_long_texts_of_windows_fit_where_all_that_they_have_had_would_not(most: int) -> None:
    """Whatever is behind a window is gone when the next part of a prompt comes."""
    free = windowed_decoder(40, 40)
    limit = free.kv_bytes_of(1800, STEP_TOKENS)
    assert limit < 1700 // PAGE * free.kv_bytes_of(1, 1)
    asked = [(prompt * 1700)[: 1700 - 9 * i] for i, prompt in enumerate(prompts(4, seed=2))]
    expected = [Texts(free, LONG).alone(prompt, max_new_tokens=90) for prompt in asked]
    texts = Texts(Counted(windowed_decoder(40, 40, kv_limit=limit)), LONG)
    tasks = [texts.task(prompt, max_new_tokens=90) for prompt in asked]
    finished(Scheduler(texts.engine, most), tasks)
    assert [task.error for task in tasks] == [None] * 4
    assert [task.text.tokens for task in tasks] == expected
    assert texts.engine.kv_bytes == 0
    never = Texts(windowed_decoder(40, 40, kv_limit=limit - 1), LONG)
    refused = never.task(asked[0])
    finished(Scheduler(never.engine, most), [refused])
    assert f"1700 tokens take {limit} bytes of keys and values, and kv_limit is {limit - 1}" in str(refused.error)


def test_what_others_hold_in_the_cache_counts() -> None:
    texts = Texts(native(pages=4))
    texts.engine.engine.step([(1000, list(range(100)))])  # two pages of somebody else's
    tasks = [texts.task([20 + i] * 60, max_new_tokens=10) for i in range(3)]
    expected = [Texts(native()).alone(task.text.tokens, max_new_tokens=10) for task in tasks]
    finished(Scheduler(texts.engine, 3), tasks)
    assert [task.text.tokens for task in tasks] == expected
    assert texts.engine.length(1000) == 100


@pytest.mark.parametrize("setup", SETUPS)
def test_random_joins_leaves_cancels_forks_and_rollbacks(setup: str) -> None:
    """Under a limit, against one text at a time; bench/random_actions.py does more of it."""
    actions = Actions(SETUPS[setup], seed=1)
    while actions.total < 120 or not all(actions.counts[kind] for kind in KINDS):
        actions.turn()
    actions.finish()
    assert bool(actions.counts["shifted"]) == (setup == "shifts")
    if setup == "crowded":
        assert min(actions.counts["waited"], actions.counts["too long"]) > 0


def test_a_cancelled_text_gives_its_pages_back_at_once() -> None:
    texts = Texts(native())
    scheduler = Scheduler(texts.engine, 2)
    tasks = [texts.task([20 + i] * 40) for i in range(3)]
    for task in tasks:
        scheduler.add(task)
    scheduler.step()
    assert (scheduler.active, scheduler.waiting) == (2, 1)
    scheduler.cancel(tasks[2])
    scheduler.cancel(tasks[0])
    assert texts.engine.kv_bytes == texts.engine.kv_bytes_of(1, 1)
    scheduler.cancel(tasks[0])  # again: nothing
    scheduler.close()
    assert texts.engine.kv_bytes == 0
    assert scheduler.step() == []


def test_a_text_is_cancelled_by_whoever_it_asks() -> None:
    texts = Texts(native())
    expected = [texts.alone([20 + i] * 40) for i in range(3)]
    tasks = [texts.task([20 + i] * 40) for i in range(3)]
    tasks[1].cancelled = lambda: len(tasks[1].text.tokens) == 43
    tasks[2].cancelled = lambda: True  # before it is even let in
    ended = finished(Scheduler(texts.engine, 2), tasks)
    assert ended == [tasks[2], tasks[1], tasks[0]]
    assert [task.text.tokens for task in tasks] == [expected[0], expected[1][:43], expected[2][:40]]
    assert [task.text.finish for task in tasks] == [tasks[0].text.finish, "closed", "closed"]
    assert [task.error for task in tasks] == [None] * 3
    assert texts.engine.kv_bytes == 0


def test_one_text_whose_logits_are_damaged_does_not_end_the_others() -> None:
    class Damaged(Counted):
        def step(self, batch: Any) -> Any:
            logits = super().step(batch)
            for row, (_, part) in zip(logits, batch, strict=True):
                if 66 in part:
                    row[:] = np.nan
            return logits

    texts = Texts(Damaged(native().engine))
    good, bad = texts.task([20, 21]), texts.task([30, 66])
    expected = texts.alone([20, 21])
    finished(Scheduler(texts.engine, 2), [bad, good])
    assert "not finite" in str(bad.error)
    assert good.text.tokens == expected


def test_texts_are_taken_as_there_is_room() -> None:
    texts = Texts(native())
    taken = []

    def source() -> Iterator[Task]:
        for i in range(40):
            taken.append(i)
            yield texts.task([20 + i % 50] * 5, max_new_tokens=3)

    seen = 0
    for task, _ in Scheduler(texts.engine, 2).run(source()):
        seen += task.done
        assert len(taken) <= seen + 6
    assert seen == 40


def test_beginnings_are_shared_among_texts_of_the_same_adapters_alone() -> None:
    class Choosing(Counted):
        """Every adapter adds its number to the logit of token 60."""

        def __init__(self, engine: _core.Decoder) -> None:
            super().__init__(engine)
            self.chosen: dict[int, Any] = {}

        def choose(self, seq: int, adapters: Any) -> None:
            assert self.engine.length(seq) == 0
            self.chosen[seq] = adapters

        def add_adapter(self) -> None: ...

        def remove_adapter(self) -> None: ...

        def adapter_bytes(self) -> None: ...

        def fork(self, seq: int, to: int, length: int) -> None:
            self.engine.fork(seq, to, length)
            self.chosen[to] = self.chosen.get(seq, ())

        def step(self, batch: Any) -> Any:
            logits = super().step(batch)
            for row, (seq, _) in zip(logits, batch, strict=True):
                row[60:62] += [number for number, _ in self.chosen.get(seq, ())] or 0
            return logits

    texts = Texts(Choosing(native().engine))
    tasks = []
    for mix in ((), ((100, 1.0),), (), ((100, 1.0),)):
        tasks.append(texts.task(list(range(8, 80)), max_new_tokens=3))
        tasks[-1].held.adapt(mix)
    finished(Scheduler(texts.engine, 4), tasks)
    assert [task.text.stats.reused_tokens for task in tasks] == [0, 0, 71, 71]
    plain, adapted = tasks[0].text.tokens[-3:], [60] * 3
    assert plain != adapted
    assert [task.text.tokens[-3:] for task in tasks] == [plain, adapted, plain, adapted]
