"""The thread that steps all models, one step of each in turn, and brings what comes of it to the event loop.

One thread for all, since a step uses every processor that the model is allowed: two at once would only get in each
other's way.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import GossamerError
from ..generation.scheduled import Output, Task
from ..generation.scheduler import Scheduler
from .rates import Rates

if TYPE_CHECKING:
    from ..generation.completion import TokenLogprob
    from .served import Served

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """What a step brought a text.

    Attributes:
        index: Of the text in its reply.
        piece: Text that is final now; may be empty.
        tokens: That were chosen.
        finish: Why the text ended, as in `Stats`; "" while it goes on.
        error: Why there is no more of it, where it failed.
        logprobs: Of the tokens, where the request asks for them, but for one that only ends the text.
    """

    index: int
    piece: str
    tokens: tuple[int, ...]
    finish: str = ""
    error: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def last(self) -> bool:
        """Whether nothing of this text follows."""
        return bool(self.finish or self.error)


class Reply:
    """The texts of one request.

    Attributes:
        served: Whose they are.
        tasks: The texts.
        events: What came of them, in order.
        failed: Whether a text failed because of the server, not because of what was asked.
    """

    def __init__(self, served: Served, tasks: Sequence[Task]) -> None:
        self.served = served
        self.tasks = list(tasks)
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._open = set(range(len(self.tasks)))  # the event loop's
        self._seen = [len(task.text.tokens) for task in self.tasks]  # the thread's

    def event(self, index: int, piece: str) -> Event:
        """Makes an event, in the engine's thread."""
        task = self.tasks[index]
        tokens = tuple(task.text.tokens[self._seen[index] :])
        self._seen[index] += len(tokens)
        logprobs = task.text.logprobs
        latest = tuple(logprobs[len(logprobs) - len(tokens) :]) if logprobs else ()
        if task.text.finish == "eos" and tokens and tokens[-1] in self.served.model.tokenizer.eos_ids:
            latest = latest[:-1]
        return Event(index, piece, tokens, task.text.finish, str(task.error) if task.error else "", latest)

    def put(self, event: Event) -> None:
        """Takes an event, in the event loop."""
        self.events.put_nowait(event)
        if event.last:
            self.end(event.index)

    def end(self, index: int) -> bool:
        """Says that a text has ended; returns whether that is new."""
        if index not in self._open:
            return False
        self._open.discard(index)
        self.served.release()
        return True


class EngineThread:
    """Steps models while there are texts; its methods are for the event loop's thread."""

    def __init__(self, served: Iterable[Served], most: int, retained: int) -> None:
        self._most, self._retained = most, retained
        self._schedulers = {each: self._scheduler(each) for each in served}
        self._rates = {each: Rates() for each in self._schedulers}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._replies: dict[Task, tuple[Reply, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins; what comes of texts goes to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends with the step that runs; texts that have not ended are dropped."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def submit(self, reply: Reply) -> None:
        """Queues the texts of a reply; they join with the next step."""
        self._commands.put(lambda: self._add(reply))

    def cancel(self, reply: Reply, index: int | None = None) -> None:
        """Drops texts of a reply that have not ended, before the next step; no event tells of it.

        Args:
            reply: Whose texts.
            index: One of them; None for all.
        """
        dropped = [i for i in (range(len(reply.tasks)) if index is None else [index]) if reply.end(i)]
        if dropped:
            self._commands.put(lambda: self._drop(reply, dropped))

    def abort(self, reason: str) -> None:
        """Ends all texts with an error."""
        self._commands.put(lambda: self._fail(list(self._schedulers), reason))

    def counts(self, served: Served) -> tuple[int, int]:
        """Returns how many texts of a model run, and how many wait."""
        scheduler = self._schedulers[served]
        return scheduler.active, scheduler.waiting

    def rates(self, served: Served) -> Rates:
        """Returns what a model's steps did lately."""
        return self._rates[served]

    def _scheduler(self, served: Served) -> Scheduler:
        return Scheduler(served.model.decoder, self._most, served.drafts, self._retained)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._obey():
            for served, scheduler in self._schedulers.items():
                if scheduler.active or scheduler.waiting:
                    self._step(served, scheduler)
        for scheduler in self._schedulers.values():
            scheduler.close()

    def _obey(self) -> bool:
        """Does what was asked for, waiting where there is nothing else to do; returns whether to go on."""
        idle = not any(scheduler.active or scheduler.waiting for scheduler in self._schedulers.values())
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            try:
                command()
            except Exception as error:
                _log.exception("the texts of requests could not be changed")
                self._fail(list(self._schedulers), f"the server failed: {type(error).__name__}: {error}")
            idle = False

    def _step(self, served: Served, scheduler: Scheduler) -> None:
        start = time.perf_counter()
        try:
            outputs = scheduler.step()
        except Exception as error:
            _log.exception("a step of %s failed", served.name)
            self._fail([served], f"the model failed: {type(error).__name__}: {error}")
            return
        self._rates[served].add(served.model, time.perf_counter() - start, self._tell(outputs), outputs)

    def _add(self, reply: Reply) -> None:
        self._replies.update((task, (reply, index)) for index, task in enumerate(reply.tasks))
        for task in reply.tasks:
            self._schedulers[reply.served].add(task)

    def _drop(self, reply: Reply, indices: list[int]) -> None:
        for index in indices:
            if self._replies.pop(reply.tasks[index], None):
                self._schedulers[reply.served].cancel(reply.tasks[index])

    def _fail(self, failed: list[Served], reason: str) -> None:
        """Ends all texts of models with an error; after a step that raised, nothing else can be done."""
        outputs = []
        for task, (reply, _) in self._replies.items():
            if reply.served in failed:
                task.error = GossamerError(reason)
                outputs.append(Output(task, ""))
        for served in failed:
            self._schedulers[served].close()
            self._schedulers[served] = self._scheduler(served)
        self._tell(outputs)

    def _tell(self, outputs: list[Output]) -> int:
        """Brings what came of a step to the event loop, all of it at once; returns how many tokens it is."""
        events = []
        for task, piece in outputs:
            reply, index = self._replies[task]
            events.append((reply, reply.event(index, piece)))
            if task.done:
                del self._replies[task]
        if events and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, events)
        return sum(len(event.tokens) for _, event in events)


def _deliver(events: list[tuple[Reply, Event]]) -> None:
    for reply, event in events:
        reply.put(event)
