"""`Sequence`: the state of one text that is being written; it takes logits and gives pieces of text."""

from __future__ import annotations

import time
from collections import abc
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .completion import Completion, TokenLogprob, token_logprob
from .sampling import sampler

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer
    from .grammar import Constraint
    from .stats import Stats


class Sequence:
    """One text: its tokens, how they are chosen, what of them is text already, and when it ends.

    Nothing here runs the model. Whoever does gives the logits of the last token, and again of the token that was chosen
    from them, until `finish` says why there is no more.

    Attributes:
        tokens: The prompt and what was chosen.
        window: What of them the next token follows from: all, until the context was full and some were dropped, where
            the options ask for that. The engine has seen all but the last.
        finish: Why the text ended, as in `Stats`; "" while it goes on.
        stats: What there is to count of it.
        logprobs: Of the tokens that were chosen, where the options ask for them.
    """

    def __init__(
        self,
        prompt: abc.Sequence[int],
        tokenizer: Tokenizer,
        stats: Stats,
        *,
        context: int,
        kv_bytes_read: abc.Callable[[int], int] = lambda _: 0,
        draw: int = 0,
        begins: bool = True,
        special: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        """Begins a text.

        Args:
            prompt: Its tokens.
            tokenizer: Decodes them, and says which end a text.
            stats: Counts them; its `sampling` are the options.
            context: Tokens that the model holds.
            kv_bytes_read: Of the engine.
            draw: Texts of the same options but another number are drawn with other random numbers.
            begins: Whether the text that comes begins with it, and does not go on with the prompt's.
            special: Whether special tokens are part of the text.
            constraint: What the text has to be, as far as none of it was chosen yet.
        """
        self.tokens = list(prompt)
        self.finish = ""
        self.stats = stats
        self.logprobs: list[TokenLogprob] = []
        self._tokenizer = tokenizer
        self._sample = sampler(stats.sampling, draw, len(self.tokens))
        self.window = self.tokens
        self._most = stats.sampling.max_new_tokens
        self._context = context
        self._ends = tokenizer.eos_ids
        self._pieces = tokenizer.stream(begins, special=True) if special else tokenizer.stream(begins)
        self._letters = 0  # of whole characters so far, those that may become a stop string with them
        self._stop = _StopText(stats.sampling.stop)
        self._constraint = constraint
        self._kv_bytes_read = kv_bytes_read
        self._kv_bytes = 0  # read in decode steps so far
        self._steps = 0
        self._keep = stats.sampling.context_shift
        while self._keep is not None and len(self.window) > context:
            self._shift(self._keep)
            stats.prompt_tokens = len(self.window)

    @property
    def room(self) -> int:
        """Most tokens that may still come."""
        return min(self._most - self.stats.new_tokens, self._context + 1 - len(self.window))

    def push(self, logits: NDArray[np.float32], seconds: float = 0.0) -> str:
        """Chooses the next token; with a constraint, those that have to follow come with it.

        Args:
            logits: Of the token after `tokens`, [vocab].
            seconds: That they took.

        Returns:
            The text that is final now; may be empty.

        Raises:
            GossamerError: no logit is finite, or one is NaN or infinite; or the constraint allows no token.
        """
        start = time.perf_counter()
        seen = len(self.window)
        if self._constraint is None:
            token = self._sample(logits, self.tokens)
        else:
            token = self._sample(self._constraint.mask(logits), self.tokens)
        if (alternatives := self.stats.sampling.logprobs) is not None:
            self.logprobs.append(token_logprob(self._tokenizer, logits, token, alternatives, self._letters))
        text = self.take(token)
        if self._constraint is not None and not self.finish:
            text += self._follow(self._constraint)
        self._count(seconds + time.perf_counter() - start, seen)
        return text

    def _follow(self, constraint: Constraint) -> str:
        """Takes what has to follow the last token; the text ends where nothing may."""
        text = ""
        forced = constraint.forced() if self.stats.sampling.logprobs is None else []  # which are of chosen tokens
        for token in forced:
            text += self.take(token)
            if self.finish:
                return text
        return text + (self._end("eos") if constraint.done else "")

    def take(self, token: int) -> str:
        """Goes on with a token, however it was chosen; returns the text that is final now."""
        full = len(self.window) == self._context
        self.tokens.append(token)
        if self.window is not self.tokens:
            self.window.append(token)
        self.stats.new_tokens += 1
        if token in self._ends:
            return self._end("eos")
        if self._constraint is not None:
            self._constraint.take(token)
        piece = self._pieces.push(token)
        self._letters += len(piece)
        text = self._stop.push(piece)
        if self._stop.found:
            return text + self._end("stop")
        if self.stats.new_tokens == self._most:
            return text + self._end("length")
        if full and self._keep is None:
            return text + self._end("context")
        if full and self._keep is not None:
            self._shift(self._keep)
        return text

    def _shift(self, keep: int) -> None:
        """Drops the older half of the window behind its first tokens."""
        dropped = (len(self.window) - keep + 1) // 2
        self.window = self.window[:keep] + self.window[keep + dropped :]
        self.stats.context_shifts += 1

    def _end(self, finish: str) -> str:
        """Ends the text; returns what was held back, of which a stop string may cut something off."""
        text = "" if self._stop.found else self._stop.push(self._pieces.flush())
        self.finish = self.stats.finish = "stop" if self._stop.found else finish
        return text + self._stop.flush()

    def close(self) -> str:
        """Ends the text as far as it came; returns what was held back of it. Nothing where it has ended."""
        if self.finish:
            return ""
        return self._end("closed")

    def completion(self, text: str) -> Completion:
        """Returns what came of it, given its pieces put together."""
        chosen = self.tokens[len(self.tokens) - self.stats.new_tokens :]
        return Completion(text, tuple(chosen), self.stats, tuple(self.logprobs))

    def _count(self, seconds: float, seen: int) -> None:
        if self.stats.prefill_seconds == 0:
            self.stats.prefill_seconds = seconds
        else:
            self.stats.decode_seconds += seconds
            self._kv_bytes += self._kv_bytes_read(seen)
            self._steps += 1
            self.stats.kv_bytes = self._kv_bytes / self._steps


class _StopText:
    """Passes text on until a stop string, holding back an end that may still become one."""

    def __init__(self, stops: abc.Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Returns the text that is certain by now; sets `found` at a stop string and returns what came before it."""
        text = self._held + text
        starts = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Returns what was held back: no more text comes, so it is no stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
