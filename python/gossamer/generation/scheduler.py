"""Many texts over one engine: sequences join and leave between steps, and one pass over the weights serves them all.

One text alone is the same loop with nobody beside it. What a text says never depends on its company, since the engine's
logits do not.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._core import CacheFull
from ..errors import GossamerError
from ..kinds import whole_number
from .held import common_length, remember, same_input
from .retained import Retained
from .scheduled import Output, Task

if TYPE_CHECKING:
    from ..engine import Engine
    from .drafts import Drafts

MOST = 16
"""Sequences in a step by default: as many tokens as kernels take in one pass over the weights."""

STEP_TOKENS = 256
"""Tokens of a step, where prompts are cut for those who wait for their next token: what goes through the blocks in one
pass over the weights."""

_LEAST_SHARED = 32  # tokens of a common beginning that are worth a fork, which copies up to a page, and waiting for


def never_fits(engine: Engine, tokens: int) -> str:
    """Says why a text of so many tokens never fits into the engine's cache, whoever else is there; "" where it does."""
    limit = _kv_limit(engine)
    size = engine.kv_bytes_of(tokens, STEP_TOKENS) if limit else 0
    return f"{tokens} tokens take {size} bytes of keys and values, and kv_limit is {limit}" if size > limit else ""


def _kv_limit(engine: Engine) -> int:
    limit: int = getattr(engine, "kv_limit", 0)  # what steps a model may be somebody else's, with no limit
    return limit


class Scheduler:
    """Runs any number of texts, some at once and the others as soon as there is room.

    A step takes the next token of every text that is being written, and beside these parts of prompts, oldest first. A
    prompt that begins as another text does takes over that one's keys and values; where they are just being computed,
    it waits for them. When the engine's cache is full, the youngest text gives its memory back and queues again: what
    it lost is computed anew. Only a text that does not fit alone fails.

    What ended texts hold may stay for those to come, such as the next turn of a conversation; it goes when somebody
    needs the room.

    It belongs to one thread. After a step that raised, Ctrl-C included, `close` is all that is left to do.
    """

    def __init__(self, engine: Engine, most: int = MOST, drafts: Drafts | None = None, retained: int = 0) -> None:
        """Makes a scheduler without texts.

        Args:
            engine: Runs the model. Others may use it at the same time.
            most: Texts at once.
            drafts: Guesses tokens where that pays, and predicts what steps take; None does neither.
            retained: Ended texts whose keys and values stay, the latest ones.

        Raises:
            GossamerError: `most` is not a positive number, or `retained` a negative one.
        """
        self.most = whole_number("most", most, 1)
        self._retained = whole_number("retained", retained, 0)
        self._engine = engine
        self._drafts = drafts
        self._kv_limit = _kv_limit(engine)
        self._waiting: deque[Task] = deque()
        self._active: list[Task] = []  # oldest first
        self._ended = Retained()  # others may still begin as they did
        self._full = False  # since the cache was, nothing has left

    @property
    def waiting(self) -> int:
        """Tasks that no step has seen yet, or that had to leave when the cache was full."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Tasks that are being computed."""
        return len(self._active)

    def add(self, task: Task) -> None:
        """Queues a task; it joins with a step."""
        self._waiting.append(task)

    def cancel(self, task: Task) -> str:
        """Drops a task, wherever it is, and ends its text as far as it came; returns what was held back of that."""
        if task in self._waiting:
            self._waiting.remove(task)
        elif task in self._active:
            self._active.remove(task)
            self._full = False
            if not task.keep:
                task.held.free()
        if not self._waiting:
            self._ended.free(self._retained)
        return "" if task.done else task.text.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[Output]:
        """Runs tasks to their ends, taking them as there is room; gives what `step` gives."""
        source = iter(tasks)
        while True:
            # As many stand ready as may run, so that one that ends leaves its beginning to the next.
            for task in itertools.islice(source, max(self.most - len(self._waiting), 0)):
                self.add(task)
            if not self._waiting and not self._active:
                return
            yield from self.step()

    def step(self) -> list[Output]:
        """Runs one step.

        Returns:
            What came of it, for every task that got a token or ended. Without tasks, nothing.
        """
        start = time.perf_counter()
        asked = [task for task in (*self._active, *self._waiting) if task.cancelled is not None and task.cancelled()]
        outputs = [Output(task, self.cancel(task)) for task in asked] + self._join()
        drafting = True
        while self._active:
            drafts: list[list[int]] = []
            try:
                entries = self._entries()
                drafts = self._guesses(entries) if drafting else [[] for _ in entries]
                logits = self._compute(entries, drafts)
            except CacheFull as error:
                if any(drafts):  # they are worth nobody's place
                    drafting = False
                else:
                    outputs += self._make_room(error)
                continue
            done = 0
            for (task, part), draft in zip(entries, drafts, strict=True):
                task.held.tokens += part
                if task.pending:
                    task.seconds += time.perf_counter() - start
                else:
                    outputs.append(self._push(task, logits[done : done + 1 + len(draft)], draft, start))
                done += 1 + len(draft)
            break
        for task, _ in outputs:
            if task.done and task in self._active:
                self._leave(task)
        return outputs

    def close(self) -> None:
        """Drops all tasks and gives their memory back; never waits."""
        self._waiting.clear()
        for task in self._active:
            if not task.keep:
                task.held.free()
        self._active.clear()
        self._ended.free()

    # --- who is there ------------------------------------------------------------------------------------------------

    def _join(self) -> list[Output]:
        """Lets those in who wait, in order, while there is room; returns those for whom there never is."""
        hopeless: list[Output] = []
        while self._waiting and len(self._active) < self.most:
            task = self._waiting[0]
            if why := never_fits(self._engine, len(task.text.window)):
                task.error = GossamerError(f"the text's {why}")
                hopeless.append(Output(self._waiting.popleft(), ""))
                continue
            if self._active and (self._full or not self._fits(task)):
                break
            self._active.append(self._waiting.popleft())
            if not task.begun:
                self._begin(task)
        self._ended.free(self._retained)
        return hopeless

    def _fits(self, task: Task) -> bool:
        """Whether the cache has room for what there is of a task beside the others, and for a token more of each.

        As many ended ones give theirs back as it takes, the latest last.
        """
        while self._kv_limit:
            growth = 0
            for one in (*self._active, task):
                _, ready, coming = (None, 0, 0) if one.begun else self._shared(one)
                shared = coming if coming - ready >= _LEAST_SHARED else ready
                growth += self._engine.kv_growth(one.held.id, len(one.text.window) + 1, STEP_TOKENS, shared)
            if self._engine.kv_bytes + growth <= self._kv_limit:
                break
            if not self._ended:
                return False
            self._ended.free(len(self._ended) - 1)
        return True

    def _make_room(self, error: CacheFull) -> list[Output]:
        """Frees what ended, or sends the youngest task back to those who wait; one alone has failed and is returned."""
        if self._ended:
            self._ended.free()
            return []
        task = self._active.pop()
        task.held.free()
        task.begun = False
        self._full = bool(self._active)
        if self._active:
            self._waiting.appendleft(task)
            return []
        task.error = GossamerError(f"the text's {len(task.text.window)} tokens do not fit, even alone: {error}")
        return [Output(task, "")]

    def _leave(self, task: Task) -> None:
        self._active.remove(task)
        self._full = False
        if task.keep:
            return
        self._ended.add(task)
        if not self._waiting:
            self._ended.free(self._retained)

    # --- what they compute -------------------------------------------------------------------------------------------

    def _entries(self) -> list[tuple[Task, list[int]]]:
        """The tokens of the next step."""
        for task in self._active:
            if not task.begun:
                self._begin(task)
        ready = [task for task in self._active if task.begun]
        room = max(STEP_TOKENS - sum(task.pending == 1 for task in ready), 1)
        entries = []
        for task in ready:
            count = task.pending
            if count > 1 and (self.most > 1 or self._kv_limit):  # else nobody can ever wait, and there is room
                count = min(count, room)
                room -= count
            if count:
                held = len(task.held.tokens)
                entries.append((task, task.text.window[held : held + count]))
        return entries

    def _guesses(self, entries: list[tuple[Task, list[int]]]) -> list[list[int]]:
        """Tokens to compute beside those of a step, for each of its tasks: where all of them are being written."""
        none: list[list[int]] = [[] for _ in entries]
        if self._drafts is None or not self._writing(entries):
            return none
        drafters, rooms = [], []
        for task, _ in entries:
            if task.drafter is None:
                task.drafter = self._drafts.drafter()
            if task.drafter is None:
                return none
            drafters.append(task.drafter)
            rooms.append(task.text.room - 1)
        tasks = [task for task, _ in entries]
        sequences = [task.held.id for task in tasks]
        try:
            return self._drafts.plan([task.text.window for task in tasks], drafters, rooms, sequences)
        except CacheFull:  # of a copy of the model that guesses in the same cache
            return none

    def _compute(self, entries: list[tuple[Task, list[int]]], drafts: list[list[int]]) -> NDArray[np.float32]:
        """Runs a step; returns logits of each task's last token and of its draft's, in order."""
        remember(task.held for task, _ in entries)
        batch = [
            (task.held.id, np.asarray(part + draft, np.int32))
            for (task, part), draft in zip(entries, drafts, strict=True)
        ]
        start = time.perf_counter()
        logits = self._engine.step(batch, all_logits=True) if any(drafts) else self._engine.step(batch)
        seconds = time.perf_counter() - start
        if self._drafts is not None and self._writing(entries):
            counts = [1 + len(draft) for draft in drafts]
            contexts = [len(task.held.tokens) for task, _ in entries]
            predicted = self._drafts.cost.predict(counts, contexts)
            self._drafts.cost.observe(counts, contexts, seconds)
            for task, _ in entries:
                task.text.stats.steps.add(seconds, predicted)
        return logits

    @staticmethod
    def _writing(entries: list[tuple[Task, list[int]]]) -> bool:
        """Whether all texts of a step have their first token, so that it computes no part of a prompt."""
        return all(len(part) == 1 and task.text.stats.new_tokens for task, part in entries)

    def _begin(self, task: Task) -> None:
        """Has a task begin with what another has of its tokens, unless that one is still computing more of them."""
        other, ready, coming = self._shared(task)
        if coming - ready >= _LEAST_SHARED:
            return
        task.begun = True
        if other is None or ready < _LEAST_SHARED:
            return
        try:
            task.held.fork(other.held, ready)
        except CacheFull:  # the step, which needs as much, makes room
            return
        if not task.text.stats.new_tokens:
            task.text.stats.reused_tokens = ready

    def _shared(self, task: Task) -> tuple[Task | None, int, int]:
        """Who has most of a task's beginning, how many tokens of it, and how many older tasks will have."""
        wanted = len(task.text.window) - 1  # the last one's logits are needed
        best, ready, coming = None, 0, 0
        for other in (*self._ended, *itertools.takewhile(lambda other: other is not task, self._active)):
            if other.held.mix != task.held.mix or not same_input(other.held, task.held):
                continue
            common = min(common_length(task.text.window, other.text.window), wanted)
            has = min(common, len(other.held.tokens))
            if has < self._engine.shortest(other.held.id):
                continue  # it has gone on too far
            if has > ready:
                best, ready = other, has
            if not other.done:
                coming = max(coming, common)
        return best, ready, coming

    def _push(self, task: Task, logits: NDArray[np.float32], draft: list[int], start: float) -> Output:
        """Gives a text its tokens: one choice, and more as long as the draft has said what came of it."""
        seconds, task.seconds = task.seconds + time.perf_counter() - start, 0.0
        shifts = task.text.stats.context_shifts
        pieces, kept = [], 0
        try:
            while True:
                before = len(task.text.tokens)
                pieces.append(task.text.push(logits[kept], 0.0 if kept else seconds))
                new = task.text.tokens[before:]  # several, where a constraint forced some
                same = common_length(new[:-1] if task.done else new, draft[kept:])
                task.held.tokens += new[:same]
                kept += same
                if task.done or same < len(new):
                    break
        except GossamerError as error:
            task.error = error
        if draft:
            task.text.stats.steps.drafted += len(draft)
            task.text.stats.steps.accepted += kept
            if kept < len(draft):
                self._engine.rollback(task.held.id, len(draft) - kept)
        if task.text.stats.context_shifts > shifts:  # what is left stands at other positions, and is computed anew
            task.held.keep_common(task.text.window)
            task.drafter = None
        return Output(task, "".join(pieces))
