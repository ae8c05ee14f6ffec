"""Ended texts whose keys and values stay for those that begin alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .held import same_input

if TYPE_CHECKING:
    from .scheduled import Task


class Retained:
    """Tasks that have ended and still hold what was computed of them, the latest last."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Task) -> None:
        """Takes a task that has ended; those that it goes on from go, since it begins as they do."""
        task.drafter = None
        for other in [other for other in self._tasks if _continues(task, other)]:
            self._tasks.remove(other)
            other.held.free()
        self._tasks.append(task)

    def free(self, left: int = 0) -> None:
        """Gives memory back, but for that of so many of the latest; never waits."""
        while len(self._tasks) > left:
            self._tasks.pop(0).held.free()


def _continues(task: Task, other: Task) -> bool:
    """Whether a task holds all that another does."""
    same = task.held.mix == other.held.mix and same_input(task.held, other.held)
    return same and task.held.tokens[: len(other.held.tokens)] == other.held.tokens
