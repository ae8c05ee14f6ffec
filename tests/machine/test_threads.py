from __future__ import annotations

import os

import pytest

from gossamer.errors import GossamerError
from gossamer.machine.threads import usable_threads


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
