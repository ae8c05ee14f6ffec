from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.errors import GossamerError
from gossamer.finetune.options import Options as FinetuneOptions
from gossamer.machine.roofline import roofline
from gossamer.machine.threads import usable_threads, work_ahead
from gossamer.pruning.options import PruneOptions


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


NO_THREADS: tuple[tuple[Any, str], ...] = (
    (-1, "must be from 0 to 1024, got -1"),
    (1025, "must be from 0 to 1024, got 1025"),
    (3_000_000_000, "must be from 0 to 1024, got 3000000000"),
    (True, "must be a whole number, got True"),
    (2.0, "must be a whole number, got 2.0"),
    (None, "must be a whole number, got None"),
)


@pytest.mark.parametrize(("count", "words"), NO_THREADS)
@pytest.mark.parametrize(
    "ask",
    [
        usable_threads,
        lambda count: list(work_ahead(abs, [1], count)),
        lambda count: PruneOptions("magnitude", sparsity=0.5, threads=count),
        lambda count: FinetuneOptions(threads=count),
        lambda count: gossamer.load("nowhere", threads=count),
        lambda count: roofline(threads=count),
    ],
    ids=["usable_threads", "work_ahead", "prune", "finetune", "load", "roofline"],
)
def test_what_is_no_number_of_threads(ask: Callable[[Any], Any], count: Any, words: str) -> None:
    with pytest.raises(GossamerError, match=f"^threads {words}$"):
        ask(count)


def test_numbers_of_numpy_are_numbers_of_threads() -> None:
    assert type(usable_threads(np.int64(2))) is int
    assert type(PruneOptions("magnitude", sparsity=0.5, threads=np.int64(2)).threads) is int


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
