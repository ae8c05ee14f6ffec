"""`Task`: a text of a scheduler, and what a step brings it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..errors import GossamerError

if TYPE_CHECKING:
    from .drafts import Drafter
    from .held import Held
    from .sequence import Sequence


class Task:
    """A text that is scheduled, and the sequence that holds it.

    Attributes:
        text: The text.
        held: What the engine has of it.
        error: Why there is no more of it, beside what `text.finish` says; None while all is well.
        keep: Whether its tokens stay in the engine when the text ends.
        begun: Whether the engine has some of it, or is to compute all of it.
        seconds: That steps took since the last token.
        cancelled: Asked before each step: whether the text is to end as far as it came. None never ends it.
        drafter: Guesses its tokens, once it is being written; None where nobody does.
    """

    def __init__(
        self,
        text: Sequence,
        held: Held,
        *,
        keep: bool = False,
        seconds: float = 0.0,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Makes a task; it may be added once.

        Args:
            text: The text; nothing of it was computed yet, but for what `held` has.
            held: Holds a beginning of the text's tokens, short of the last one, or nothing.
            keep: Whether the tokens stay in the engine when the text ends.
            seconds: That it took to get here.
            cancelled: May be called from the thread that steps, and must not wait.
        """
        self.text = text
        self.held = held
        self.keep = keep
        self.error: GossamerError | None = None
        self.begun = bool(held.tokens)
        self.seconds = seconds
        self.cancelled = cancelled
        self.drafter: Drafter | None = None

    @property
    def done(self) -> bool:
        """Whether the text has ended, well or not."""
        return bool(self.text.finish) or self.error is not None

    @property
    def pending(self) -> int:
        """Tokens that the engine has to see before the next one is chosen."""
        return len(self.text.window) - len(self.held.tokens)


class Output(NamedTuple):
    """What a step brought one task: a piece of text, which may be empty; `task.done` tells whether it was the last."""

    task: Task
    piece: str
