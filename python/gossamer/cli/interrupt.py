"""Ctrl-C: a text ends as far as it came, and what there is of it is told; so is what a long command goes on from."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


class Interrupt:
    """Notes the first Ctrl-C for whoever asks, by calling this; the second, or one before the text began, raises.

    Attributes:
        begun: Whether there is something that ought to be told.
    """

    def __init__(self) -> None:
        self.begun = False
        self._asked = False
        self._before: Any = None

    def __call__(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._asked

    @property
    def code(self) -> int:
        """The exit code that tells so."""
        return INTERRUPTED if self._asked else 0

    def __enter__(self) -> Interrupt:
        # Elsewhere signals cannot be had, and where somebody else takes or ignores this one, it stays his.
        mine = threading.current_thread() is threading.main_thread()
        if mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self.begun:
            signal.default_int_handler(number, frame)
        self._asked = True


@contextmanager
def told(kept: str | Path) -> Generator[None, None, None]:
    """Says after Ctrl-C from what the same command goes on, where there is something: of commands that keep it."""
    try:
        yield
    except KeyboardInterrupt:
        if Path(kept).exists():
            print(f"gossamer: stopped; the same command goes on from {kept}", file=sys.stderr)
        raise
