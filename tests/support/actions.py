"""Random actions on one engine: texts that join, end, are cancelled and share their beginnings, chats that go back and
go on, sequences that are stepped, forked, rolled back, saved and freed, all under a limit; against one at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from copying import drafts
from engine_cases import FORMAT_OF, VOCAB, config
from gossamer import _core
from gossamer.arch.experts import with_experts
from gossamer.arch.spec import Attention, Experts, Mlp, Routing, Transformer
from gossamer.checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from gossamer.engine import Mix
from gossamer.generation.held import Held
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import STEP_TOKENS, Scheduler
from reference_model import random_tensors
from scheduled import CONTEXT, PAGE, Counted, Texts

KINDS = ("joined", "ended", "cancelled", "chats", "stepped", "forked", "rolled back", "saved", "freed")
"""What is counted as an action."""

MORE = ("shared", "drafted", "shifted", "waited", "too long", "refused")
"""What is counted beside: beginnings taken over, guesses computed, contexts that were full, texts that gave their place
up, that never fit, calls of somebody else that had no room."""

MIXES: tuple[Mix, ...] = ((), ((1, 1.0),), ((1, 0.5), (2, 2.0)))


@dataclass(frozen=True)
class Setup:
    """An engine, and how many texts it writes under which limit.

    Attributes:
        kv: Type of keys and values.
        weights: Type of the blocks' weights.
        window: Positions that every other block sees.
        experts: Whether MLPs are experts.
        adapters: Whether texts choose adapters.
        drafts: Whether tokens are guessed.
        shifts: Whether texts go on where the context is full.
        threads: Of the engine.
        pages: That it may have.
        most: Texts at once.
        retained: Ended texts whose keys and values stay.
    """

    kv: str = "f32"
    weights: str = "int8"
    window: int | None = None
    experts: bool = False
    adapters: bool = False
    drafts: bool = False
    shifts: bool = False
    threads: int = 1
    pages: int = 10
    most: int = 5
    retained: int = 0

    def description(self) -> Transformer:
        """Returns the model."""
        model = config(context=CONTEXT).describe()
        if self.experts:
            model = with_experts(model, Experts(4, 2, Mlp(40, "silu"), Routing("all", normalized=True)))
        if self.window is None:
            return model
        (block,) = model.stack.kinds
        attention, mlp = block.branches
        assert isinstance(attention.mixer, Attention)
        seeing = replace(attention, mixer=replace(attention.mixer, window=self.window))
        kinds = (replace(block, branches=(seeing, mlp)), block)
        return replace(model, stack=replace(model.stack, kinds=kinds, layers=(0, 1)))

    def engine(self, limited: bool = True) -> Any:
        """Returns an engine; the same numbers each time."""
        model = self.description()
        tensors = random_tensors(model)
        weights = {}
        for name in model.weights:
            whole = name in FORMAT_OF or name in model.exact
            weights[name] = _core.pack(tensors[name], "dense" if whole else "bitmap", "f32" if whole else self.weights)
        vectors = {name: tensors[name] for name in model.vectors}

        def built(limit: int) -> _core.Decoder:
            made = _core.Decoder(model.to_dict(), weights, vectors, threads=self.threads, kv=self.kv, kv_limit=limit)
            if self.adapters:
                for number in (1, 2):
                    assert made.add_adapter(_adapter(model, number)) == number
            return made

        made = built(0)
        return Counted(built(self.pages * made.kv_bytes_of(1, 1)) if limited else made)


SETUPS = {
    "plain": Setup(),
    "drafts": Setup(drafts=True, kv="bf16"),
    "crowded": Setup(pages=6, most=8, retained=9, kv="int8", weights="int4", drafts=True),
    "windows": Setup(window=37, kv="f16", pages=8, drafts=True, retained=4),
    "experts": Setup(experts=True, threads=2, weights="int4"),
    "shifts": Setup(shifts=True, drafts=True, kv="f16", pages=9),
    "adapters": Setup(adapters=True, pages=7, retained=3),
}


def _adapter(model: Transformer, number: int) -> dict[str, _core.Weight]:
    rng = np.random.default_rng(number)
    parts = {}
    for name in ("layers.0.q", "layers.1.down"):
        rows, cols = model.weights[name]
        u, v = rng.standard_normal((rows, 4)) / 2, rng.standard_normal((4, cols)) / np.sqrt(cols)
        parts[name + LOW_RANK_U] = _core.pack(u.astype(np.float32), "dense", "bf16")
        parts[name + LOW_RANK_V] = _core.pack(v.astype(np.float32), "dense", "bf16")
    return parts


class Asked(NamedTuple):
    """What a text was asked."""

    prompt: list[int]
    mix: Mix
    options: dict[str, Any]


@dataclass
class Chat:
    """A sequence that texts are written in one behind the other."""

    held: Held
    text: list[int]
    task: Task | None = None


class Actions:
    """One engine and what is done with it; everything that it says is compared."""

    def __init__(self, setup: Setup, seed: int) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys((*KINDS, *MORE), 0))
        self._setup = setup
        self._rng = np.random.default_rng(seed)
        self._texts = Texts(setup.engine())
        self._oracle = Texts(setup.engine(limited=False))
        self._engine = self._texts.engine
        self._scheduler = Scheduler(self._engine, setup.most, drafts() if setup.drafts else None, setup.retained)
        self._page = self._engine.kv_bytes_of(1, 1)
        self._beginning = self._rng.integers(8, VOCAB, 150).tolist()
        self._running: dict[Task, Asked] = {}
        self._chats: list[Chat] = []
        self._others: dict[int, list[int]] = {}
        self._next_other = 1_000_000

    @property
    def total(self) -> int:
        """Actions so far."""
        return sum(self.counts[kind] for kind in KINDS)

    def turn(self) -> None:
        """Does something, or nothing, and runs a step."""
        what = self._rng.random()
        if what < 0.3:
            if self._scheduler.waiting < 6:
                self._join()
        elif what < 0.36:
            self._chat()
        elif what < 0.42:
            self._cancel()
        elif what < 0.62:
            self._other()
        self._step()

    def finish(self) -> None:
        """Runs all texts to their ends, frees everything, and looks for what is left."""
        for _ in range(20_000):
            if not self._running:
                break
            self._step()
        assert not self._running, "texts wait for one another forever"
        assert (self._scheduler.active, self._scheduler.waiting) == (0, 0)
        self._scheduler.close()
        for chat in self._chats:
            chat.held.free()
        for sequence in self._others:
            self._engine.free(sequence)
        assert (self._engine.kv_bytes, self._oracle.engine.kv_bytes) == (0, 0), "pages are left"

    # --- texts -------------------------------------------------------------------------------------------------------

    def _ask(self, begins: list[int]) -> Asked:
        rng = self._rng
        long = 200 if rng.random() < 0.05 else CONTEXT if self._setup.shifts else 50
        prompt = [*begins, *rng.integers(8, VOCAB, rng.integers(1, long)).tolist()]
        options = {"max_new_tokens": int(rng.integers(1, 40)), "seed": int(rng.integers(1000))}
        options["temperature"] = float(rng.integers(2))
        mix = MIXES[rng.integers(len(MIXES))] if self._setup.adapters else ()
        if not self._setup.shifts:
            return Asked(prompt[: CONTEXT - 1], mix, options)
        options |= {"context_shift": int(rng.integers(40)), "logit_bias": {7: -100.0}}  # none ends by itself
        return Asked(prompt, mix, options)

    def _add(self, task: Task, asked: Asked) -> None:
        self._running[task] = asked
        self._scheduler.add(task)

    def _join(self) -> None:
        shared = self._rng.integers(len(self._beginning)) if self._rng.random() < 0.6 else 0
        asked = self._ask(self._beginning[:shared])
        task = self._texts.task(asked.prompt, **asked.options)
        task.held.adapt(asked.mix)
        self._add(task, asked)
        self.counts["joined"] += 1

    def _chat(self) -> None:
        """Goes on with a chat, from anywhere in it, or begins one."""
        idle = [chat for chat in self._chats if chat.task is None]
        if len(self._chats) < 2:
            chat = Chat(Held(self._engine, self._texts.ids), [])
            self._chats.append(chat)
        elif idle:
            chat = idle[self._rng.integers(len(idle))]
        else:
            return
        if self._rng.random() < 0.2:
            chat.text = []
        asked = self._ask(chat.text[: self._rng.integers(len(chat.text) + 1)])
        chat.held.adapt(asked.mix)
        text = self._texts.task(asked.prompt, **asked.options).text
        chat.held.keep_common(text.window)
        chat.task = Task(text, chat.held, keep=True)
        self._add(chat.task, asked)
        self.counts["chats"] += 1

    def _cancel(self) -> None:
        if self._running:
            task = list(self._running)[self._rng.integers(len(self._running))]
            self._scheduler.cancel(task)
            self._over(task)
            self.counts["cancelled"] += 1

    def _step(self) -> None:
        before = self._scheduler.active
        ended = {task for task, _ in self._scheduler.step() if task.done}
        self.counts["waited"] += self._scheduler.active < before - len(ended)
        for task in ended:
            self._over(task)
            self.counts["ended"] += 1
        held = [task.held for task in self._running]
        for one in held:
            assert self._engine.length(one.id) == len(one.tokens)
        known = [*held, *(chat.held for chat in self._chats if chat.task is None)]
        pages = sum(_pages(len(one.tokens)) for one in known) + sum(map(_pages, map(len, self._others.values())))
        ending = self._scheduler._ended  # freed with the next step, or later
        pages += sum(_pages(len(task.held.tokens)) for task in ending)
        assert self._engine.kv_bytes <= pages * self._page, "pages are nobody's"
        assert self._engine.kv_bytes <= self._engine.kv_limit

    def _over(self, task: Task) -> None:
        """Compares a text that has ended with the one that nobody stood beside."""
        asked = self._running.pop(task)
        expected = self._oracle.alone(asked.prompt, asked.mix, **asked.options)
        if task.error is not None:
            need = self._engine.kv_bytes_of(len(task.text.window), STEP_TOKENS)
            assert need + self._engine.kv_bytes > self._engine.kv_limit, "it had room"
            assert "kv_limit is" in str(task.error)
            self.counts["too long"] += 1
        if task.error is not None or task.text.finish == "closed":
            assert task.text.tokens == expected[: len(task.text.tokens)]
        else:
            assert task.text.tokens == expected
        self.counts["shared"] += not task.keep and task.text.stats.reused_tokens > 0
        self.counts["shifted"] += task.text.stats.context_shifts
        self.counts["drafted"] += task.text.stats.steps.drafted
        for chat in self._chats:
            if chat.task is task:
                chat.text, chat.task = list(task.text.tokens), None

    # --- somebody else's sequences -----------------------------------------------------------------------------------

    def _other(self) -> None:
        does = self._rng.choice(["step", "step", "step", "fork", "fork", "roll back", "save", "free"])
        try:
            if does == "step":
                self._step_others()
            elif self._others:
                sequence = list(self._others)[self._rng.integers(len(self._others))]
                {"fork": self._fork, "roll back": self._roll_back, "save": self._save, "free": self._free}[does](
                    sequence
                )
        except _core.CacheFull:  # nothing has changed
            self.counts["refused"] += 1
        for sequence, tokens in self._others.items():
            assert self._engine.length(sequence) == len(tokens)

    def _fresh(self) -> int:
        self._next_other += 1
        return self._next_other

    def _step_others(self) -> None:
        """Steps one or all of them, and compares the logits with those of whole texts."""
        rng = self._rng
        chosen = list(self._others)
        if len(chosen) < 3 and (not chosen or rng.random() < 0.4):
            chosen = [self._fresh()]
        elif rng.random() < 0.5:
            chosen = chosen[:1]
        batch = []
        for sequence in chosen:
            room = CONTEXT - len(self._others.get(sequence, []))
            count = min(int(rng.choice([1, 1, 3, 16, 70, 130])), room)
            if count:
                batch.append((sequence, rng.integers(0, VOCAB, count).tolist()))
        if not batch:
            return
        logits = self._engine.step(batch, all_logits=True)
        self.counts["stepped"] += len(batch)
        for sequence, tokens in batch:
            text = self._others.setdefault(sequence, [])
            text += tokens
            expected = self._oracle.engine.step([(sequence, text)], all_logits=True)[-len(tokens) :]
            self._oracle.engine.free(sequence)
            np.testing.assert_array_equal(logits[: len(tokens)], expected)
            logits = logits[len(tokens) :]

    def _fork(self, sequence: int) -> None:
        if len(self._others) < 3:
            to, length = self._fresh(), int(self._rng.integers(1, len(self._others[sequence]) + 1))
            self._engine.fork(sequence, to, length)
            self._others[to] = self._others[sequence][:length]
            self.counts["forked"] += 1

    def _roll_back(self, sequence: int) -> None:
        count = int(self._rng.integers(1, len(self._others[sequence]) + 1))
        self._engine.rollback(sequence, count)
        del self._others[sequence][-count:]
        if not self._others[sequence]:
            del self._others[sequence]
        self.counts["rolled back"] += 1

    def _save(self, sequence: int) -> None:
        """Saves a sequence, frees it, and begins another one with what was saved."""
        length = int(self._rng.integers(1, len(self._others[sequence]) + 1))
        kept, to = self._engine.save(sequence, length), self._fresh()
        self._engine.free(sequence)
        text = self._others.pop(sequence)
        self._engine.restore(to, kept, length)
        self._others[to] = text[:length]
        self.counts["saved"] += 1

    def _free(self, sequence: int) -> None:
        self._engine.free(sequence)
        del self._others[sequence]
        self.counts["freed"] += 1


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)
