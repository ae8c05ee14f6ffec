from __future__ import annotations

import os
import time

import pytest

from gossamer.errors import GossamerError
from gossamer.machine.threads import usable_threads, work_ahead


@pytest.fixture(autouse=True)
def three_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})


def test_as_many_as_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert [usable_threads(count) for count in (0, 1, 3)] == [0, 1, 3]
    assert not caplog.records


@pytest.mark.parametrize("count", [4, 1024])
def test_no_more_than_processors_and_that_is_told(count: int, caplog: pytest.LogCaptureFixture) -> None:
    assert usable_threads(count) == 3
    (record,) = caplog.records
    assert record.getMessage() == f"{count} threads are asked for, and this process has 3 processors: it uses as many"


@pytest.mark.parametrize("count", [-1, 1025, 3_000_000_000])
def test_what_is_no_number_of_threads(count: int) -> None:
    with pytest.raises(GossamerError, match=f"threads must be from 0 to 1024, got {count}"):
        usable_threads(count)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_work_ahead_keeps_the_order_and_raises_in_its_place(threads: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (5 - item))  # later ones are done sooner
        if item == 4:
            raise ValueError("four")
        return item * item

    made = work_ahead(work, range(6), threads)
    assert [next(made) for _ in range(4)] == [(0, 0), (1, 1), (2, 4), (3, 9)]
    with pytest.raises(ValueError, match="four"):
        next(made)


def test_work_ahead_begins_no_more_than_it_has_threads_for() -> None:
    begun: list[int] = []
    made = work_ahead(begun.append, range(100), 2)
    next(made)
    assert len(begun) <= 3
    made.close()
    assert len(begun) < 10
