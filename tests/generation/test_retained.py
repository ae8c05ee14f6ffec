"""What ended texts leave for those to come: who takes it, how much of it stays, and when it goes."""

from __future__ import annotations

from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import Scheduler
from scheduled import PAGE, Texts, finished, native


def ended(texts: Texts, scheduler: Scheduler, prompt: list[int], **options: int) -> Task:
    """Runs a text alone to its end."""
    task = texts.task(prompt, **{"max_new_tokens": 4, **options})
    finished(scheduler, [task])
    assert task.error is None
    return task


def turns(texts: Texts, count: int) -> list[list[int]]:
    """Prompts of a conversation, each the last one with its answer and more."""
    made = [list(range(8, 78))]
    for turn in range(1, count):
        made.append([*texts.alone(made[-1], max_new_tokens=4), *(20 + turn,) * 9])
    return made


def test_a_conversation_goes_on_where_it_was() -> None:
    texts = Texts(native())
    prompts = turns(texts, 4)
    expected = [texts.alone(prompt, max_new_tokens=4) for prompt in prompts]
    scheduler = Scheduler(texts.engine, 4, retained=1)
    tasks = [ended(texts, scheduler, prompt) for prompt in prompts]
    assert [task.text.tokens for task in tasks] == expected
    assert [task.text.stats.reused_tokens for task in tasks] == [0, *(len(tokens) - 1 for tokens in expected[:-1])]
    assert texts.engine.kv_bytes == texts.engine.kv_bytes_of(len(expected[-1]) - 1, 1)
    scheduler.close()
    assert texts.engine.kv_bytes == 0


def test_the_latest_stay() -> None:
    texts = Texts(native())
    scheduler = Scheduler(texts.engine, 2, retained=2)
    asked = [[20 + i] * 70 for i in range(3)]
    for prompt in asked:
        ended(texts, scheduler, prompt)
    again = [ended(texts, scheduler, prompt).text.stats.reused_tokens for prompt in (asked[1], asked[2], asked[0])]
    assert again == [69, 69, 0]
    scheduler.close()
    assert texts.engine.kv_bytes == 0


def test_what_was_retained_goes_before_anybody_waits_or_fails() -> None:
    texts = Texts(native(pages=4))
    scheduler = Scheduler(texts.engine, 2, retained=9)
    for i in range(3):
        ended(texts, scheduler, [20 + i] * 40)
    long = [30] * (4 * PAGE - 10)
    task = ended(texts, scheduler, long, max_new_tokens=9)
    assert task.text.tokens == Texts(native()).alone(long, max_new_tokens=9)
    pair = [texts.task([40 + i] * 100, max_new_tokens=9) for i in range(2)]
    for one in pair:
        scheduler.add(one)
    scheduler.step()
    assert scheduler.active == 2, "two pages each, once the long one's are given back"
    assert all(one.error is None for one in finished(scheduler, []))


def test_what_is_taken_over_stays_until_others_need_it() -> None:
    texts = Texts(native(pages=4))
    scheduler = Scheduler(texts.engine, 2, retained=9)
    first = ended(texts, scheduler, list(range(8, 58)))
    ended(texts, scheduler, [60] * 50)
    other = texts.task([61] * 90, max_new_tokens=30)  # two pages, so that one of the two ended texts has to go
    scheduler.add(other)
    scheduler.step()
    again = ended(texts, scheduler, [*first.text.tokens, 9])
    assert again.text.tokens == Texts(native()).alone([*first.text.tokens, 9], max_new_tokens=4)


def test_a_dropped_text_leaves_nothing() -> None:
    texts = Texts(native())
    scheduler = Scheduler(texts.engine, 2, retained=9)
    task = texts.task([20] * 100)
    scheduler.add(task)
    scheduler.step()
    scheduler.cancel(task)
    assert texts.engine.kv_bytes == 0
