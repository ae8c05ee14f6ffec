"""A model drafts for itself: a sparser copy of its weights with fewer bits guesses, and the model itself verifies.

The copy goes on behind the same keys and values: nothing of a text is computed twice, and what the copy adds is taken
back before the model adds its own. Its head has the first part of the vocabulary alone, where tokenizers have what is
commonest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import GossamerError
from ..importance import relative_magnitude

if TYPE_CHECKING:
    from ..engine import Engine
    from ..progress import Progress
    from .cost import StepCost
    from .model import Model

ZEROS = 0.5
"""Of the copy's blocks."""

_TYPE, _GROUP = "int4", 32
_HEAD_ROWS, _HEAD_SHARE = 16384, 4  # tokens that it can guess: so many at least, or such a part of the vocabulary
_MEMORY = 0.97  # of what came of guesses before, at each
_FIRST_CHANCE = 0.6
_LATEST = 0.1  # weight of the latest step in what one takes
_ASK_AGAIN = 48  # steps without guesses, since they do not pay, until one is tried again


class Rate:
    """How often guesses come true, of late, with the interface of `drafts.Chances`."""

    def __init__(self) -> None:
        self._chance = _FIRST_CHANCE

    def chance(self, matching: int) -> float:  # noqa: ARG002 - it is one for all
        """Returns the share of guesses that come true."""
        return self._chance

    def observe(self, matching: int, true: bool) -> None:  # noqa: ARG002
        """Notes what came of one."""
        self._chance = self._chance * _MEMORY + (1 - _MEMORY) * true


class SelfDraft:
    """The copy, and what is known of its guesses.

    Attributes:
        decoder: Runs it, over the sequences of the model.
        chances: How often its guesses come true.
    """

    def __init__(self, model: Model, zeros: float = ZEROS, progress: Progress | None = None) -> None:
        """Packs the copy, in memory.

        Args:
            model: Whose weights it has.
            zeros: The share of them that it leaves out.
            progress: Called with (done, total, what).

        Raises:
            GossamerError: the model is none of the native engine's.
        """
        if not isinstance(model.decoder, _core.Decoder):
            raise GossamerError("draft self is for models that the native engine runs")
        target = model.decoder
        weights, linears = dict(model.weights), [name for name in model.config.linears if name in model.weights]
        for done, name in enumerate(linears):
            if progress is not None:
                progress(done, len(linears), "packing the draft")
            weights[name] = _core.pack(sparser(weights[name].unpack(), zeros), "bitmap", _TYPE, _GROUP)
        head = weights["embed" if model.config.tied else "head"].unpack()
        rows = min(len(head), max(_HEAD_ROWS, len(head) // _HEAD_SHARE))
        weights["head"] = _core.pack(head[:rows], "dense", _TYPE, _GROUP)
        vectors = {name: v[:rows] if name == "head.bias" else v for name, v in model.vectors.items()}
        self.decoder = _core.Decoder(model.config.to_dict(), weights, vectors, kv=target.kv, draft_of=target)
        if progress is not None:
            progress(len(linears), len(linears), "packing the draft")
        self.chances = Rate()
        self._engine: Engine = target
        self._over_model = self.decoder.weight_bytes / target.weight_bytes  # of the time of a step, until it ran
        self._idle = 0

    def guess(
        self, sequences: Sequence[int], texts: Sequence[Sequence[int]], rooms: Sequence[int], cost: StepCost, most: int
    ) -> list[list[int]]:
        """Guesses how texts go on, as far as that promises more tokens a second.

        Args:
            sequences: Of the engine, which holds all but the last token of each text.
            texts: Their tokens.
            rooms: How many tokens each has room for behind the next.
            cost: Of the model's steps.
            most: Tokens of a step of the model.

        Returns:
            As many tokens for each text; the sequences are as they were.

        Raises:
            CacheFull: the guesses have no room; the sequences are as they were.
        """
        count = self._count([len(text) for text in texts], min([*rooms, most // len(texts) - 1]), cost)
        if not count:
            return [[] for _ in texts]
        start = time.perf_counter()
        latest = np.array([text[-1] for text in texts], np.int32)
        guesses: list[NDArray[np.int32]] = []
        try:
            for _ in range(count):
                batch = [(sequence, latest[i : i + 1]) for i, sequence in enumerate(sequences)]
                latest = self.decoder.step(batch, top_k=1)[0][:, 0]
                guesses.append(latest)
        finally:
            if guesses:
                for sequence in sequences:
                    self._engine.rollback(sequence, len(guesses))
        plain = cost.seconds([1] * len(texts), [len(text) for text in texts])
        self._over_model += _LATEST * ((time.perf_counter() - start) / count / plain - self._over_model)
        return np.stack(guesses, 1).tolist()  # type: ignore[no-any-return]

    def _count(self, contexts: list[int], most: int, cost: StepCost) -> int:
        """How many tokens to guess of each text."""
        chance, texts = self.chances.chance(0), len(contexts)
        plain = cost.seconds([1] * texts, contexts)
        best, count, tokens, together = plain, 0, 1.0, 1.0
        for n in range(1, most + 1):
            together *= chance
            tokens += together
            seconds = (n * self._over_model * plain + cost.seconds([1 + n] * texts, contexts)) / tokens
            if seconds < best:
                best, count = seconds, n
        self._idle = 0 if count else self._idle + 1
        if self._idle > _ASK_AGAIN and most >= 1:
            self._idle, count = 0, 1
        return count


def sparser(values: NDArray[np.float32], zeros: float) -> NDArray[np.float32]:
    """Returns a matrix without its smallest values, relative to their rows and columns."""
    dropped = int(zeros * values.size)
    if dropped:
        values = values.copy()
        values.reshape(-1)[np.argpartition(relative_magnitude(values), dropped, None)[:dropped]] = 0
    return values
