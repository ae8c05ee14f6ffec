"""How many threads somebody may have, and work that goes on in all of them."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..errors import GossamerError
from ..kinds import check_kind

_MOST = 1024
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def check_threads(asked: int) -> int:
    """Returns a number of threads, 0 where the choice is left to whoever uses them.

    Raises:
        GossamerError: it is no number of threads.
    """
    check_kind("threads", asked, "int")
    if not 0 <= asked <= _MOST:
        raise GossamerError(f"threads must be from 0 to {_MOST}, got {asked}")
    return int(asked)


def usable_threads(asked: int) -> int:
    """Returns how many threads to use: what is asked for, but no more than there are processors.

    Threads wait for each other many times a token, so that any beyond the processors cost a multiple of the time.

    Args:
        asked: 0 leaves the choice to whoever uses them.

    Raises:
        GossamerError: as `check_threads`.
    """
    count, processors = check_threads(asked), _processors()
    if count > processors:
        logging.getLogger("gossamer").warning(
            "%s threads are asked for, and this process has %s processors: it uses as many", count, processors
        )
    return min(count, processors)


def work_ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int = 0
) -> Iterator[tuple[_Item, _Result]]:
    """Gives each item with what is made of it, in order; threads make the next ones meanwhile, one each.

    Args:
        work: Leaves Python's lock alone for most of its time. What it raises comes where its result would.
        items: What to work on.
        threads: How many; 0 takes as many as there are processors, 1 works only when the next item is asked for.
    """
    count = usable_threads(threads) or _processors()
    if count == 1:
        yield from ((item, work(item)) for item in items)
        return
    with ThreadPoolExecutor(count) as pool:
        pending: deque[tuple[_Item, Future[_Result]]] = deque()
        try:
            for item in items:
                pending.append((item, pool.submit(work, item)))
                if len(pending) > count:
                    first, made = pending.popleft()
                    yield first, made.result()
            while pending:
                first, made = pending.popleft()
                yield first, made.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
