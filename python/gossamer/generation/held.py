"""`Held`: a sequence of the engine, and what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Adaptable, Reading

if TYPE_CHECKING:
    from ..engine import Engine, Mix


class Held:
    """A sequence of the engine, the token ids that it holds, and the adapters that they were computed with.

    Attributes:
        id: Of the engine's sequence; another one each time that this is freed.
        tokens: What the engine has computed.
        mix: The adapters.
        reads: The input that it reads by way of an encoder; None where there is none.
    """

    def __init__(self, engine: Engine, ids: Iterator[int], mix: Mix = (), reads: NDArray[Any] | None = None) -> None:
        self.id = next(ids)
        self.reads = reads
        self.tokens: list[int] = []
        self.mix = mix
        self._engine = engine
        self._ids = ids
        self._chose = False  # of the engine's sequence as it is
        self._remembers = False

    def adapt(self, mix: Mix) -> None:
        """Goes on with these adapters; what was computed with others is forgotten."""
        if mix != self.mix:
            self.free()
            self.mix = mix

    def prepare(self) -> int:
        """Makes sure that the engine's sequence has its adapters, and what it reads; returns its id, for a step."""
        remember([self])
        return self.id

    def _adapted(self) -> None:
        if not self._chose:
            choose(self._engine, self.id, self.mix)
            self._chose = True

    def keep_common(self, prompt: list[int]) -> int:
        """Rolls back to the longest common prefix with `prompt`, short of its last token, whose logits are needed."""
        held = self._engine.length(self.id)  # Ctrl-C may have come between a step and its note in `tokens`
        common = common_length(self.tokens[:held], prompt[:-1])
        if common < held:
            common = common if common >= self._engine.shortest(self.id) else 0
            self._engine.rollback(self.id, held - common)
        del self.tokens[common:]
        return common

    def fork(self, other: Held, length: int) -> None:
        """Takes over the first tokens of another of the same adapters and input, while it holds none itself."""
        self._engine.fork(other.id, self.id, length)  # the choice of adapters comes along
        self.tokens = other.tokens[:length]
        self._chose = self._remembers = True

    def free(self) -> None:
        """Empties the sequence and gives its memory back; never waits."""
        self._engine.free(self.id)
        self.tokens = []
        self.id = next(self._ids)
        self._chose = self._remembers = False


def remember(helds: Iterable[Held]) -> None:
    """Prepares several of one engine for a step: what they read is encoded in one call."""
    missing = []
    for held in helds:
        held._adapted()
        if held.reads is not None and not held._remembers:
            missing.append(held)
    if not missing:
        return
    engine = missing[0]._engine
    assert isinstance(engine, Reading)
    engine.remember([(held.id, held.reads) for held in missing if held.reads is not None])
    for held in missing:
        held._remembers = True


def same_input(a: Held, b: Held) -> bool:
    """Whether two read the same, or nothing."""
    return a.reads is b.reads or (a.reads is not None and b.reads is not None and np.array_equal(a.reads, b.reads))


def choose(engine: Engine, sequence: int, mix: Mix) -> None:
    """Sets the adapters of a sequence that holds no tokens; nothing where there are none."""
    if mix:
        assert isinstance(engine, Adaptable)
        engine.choose(sequence, mix)


def common_length(a: list[int], b: list[int]) -> int:
    """Returns the length of the longest common prefix."""
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    return next(i for i in range(most) if a[i] != b[i])
