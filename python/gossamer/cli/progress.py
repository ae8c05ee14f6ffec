"""Progress of long work, on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[int, int, str], None]

LINE_SECONDS = 5.0
"""Where stderr is no terminal, least time between two lines; it grows with the work, so that long runs stay short."""

LINE_SHARE = 0.05
"""Of the time so far, what passes at least between two lines."""


@contextlib.contextmanager
def progress() -> Generator[Report, None, None]:
    """Gives a callback `(done, total, what)`; nothing shows before its first call, and a bar goes at the end."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None

        def report(done: int, total: int, what: str) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(_bar())
                bar.add_task(what, total=total)
            bar.update(bar.task_ids[0], completed=done, total=total, description=what)

        yield report


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _lines() -> Report:
    begun = told = time.monotonic()

    def report(done: int, total: int, what: str) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= max(LINE_SECONDS, LINE_SHARE * (now - begun)):
            told = now
            share = f" ({100 * done // total}%)" if total else ""
            print(f"{what}: {done:,} of {total:,}{share}", file=sys.stderr, flush=True)

    return report
