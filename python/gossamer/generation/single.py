"""One text, from its prompt to its end, piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from .scheduled import Task
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .drafts import Drafts
    from .held import Held
    from .model import Model
    from .sequence import Sequence

Pieces = Generator[str, None, None]
Cancel = Callable[[], bool] | None


def run_text(
    model: Model, held: Held, text: Sequence, *, keep: bool, drafts: Drafts | None, cancel: Cancel = None
) -> Pieces:
    """Runs one text, as `Model.stream` has it.

    Args:
        model: The model; its `last_stats` are those of the text in the end.
        held: A sequence, whatever it holds: what it shares with the prompt is not computed again.
        text: The text, nothing of it chosen.
        keep: Whether the sequence ends up holding the text but for its last token, or is freed; of a text of beams, it
            holds the prompt.
        drafts: Guesses tokens.
        cancel: As of `Model.stream`.

    Returns:
        An iterator of non-empty pieces.
    """
    scheduler = Scheduler(model.decoder, most=1, drafts=drafts)
    start = time.perf_counter()
    try:
        text.stats.reused_tokens = held.keep_common(text.window)
        if text.stats.sampling.beams > 1:
            from .beam_texts import beam_text

            if piece := beam_text(model, held, text, cancel):
                yield piece
            return
        task = Task(text, held, keep=keep, seconds=time.perf_counter() - start, cancelled=cancel)
        scheduler.add(task)
        while not task.done:
            for _, piece in scheduler.step():
                if piece:
                    yield piece
        if task.error is not None:
            raise task.error
    finally:
        model.last_stats = text.stats
        if not keep:
            held.free()
