"""How many threads somebody may have."""

from __future__ import annotations

import logging
import os

from ..errors import GossamerError

_MOST = 1024


def usable_threads(asked: int) -> int:
    """Returns how many threads to use: what is asked for, but no more than there are processors.

    Threads wait for each other many times a token, so that any beyond the processors cost a multiple of the time.

    Args:
        asked: 0 leaves the choice to whoever uses them.

    Raises:
        GossamerError: it is no number of threads.
    """
    if not 0 <= asked <= _MOST:
        raise GossamerError(f"threads must be from 0 to {_MOST}, got {asked}")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked > processors:
        logging.getLogger("gossamer").warning(
            "%s threads are asked for, and this process has %s processors: it uses as many", asked, processors
        )
    return min(asked, processors)
