"""`Model`: a decoder and its tokenizer, and the loop that turns a prompt into text."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..text.generation_config import unheeded
from ..text.messages import Message, check_text
from .sampling import sampler
from .sampling_options import GENERATE, SamplingOptions, check_names, model_defaults
from .stats import Stats

if TYPE_CHECKING:
    from .. import _core
    from ..arch.spec import Transformer
    from ..text.tokenizer import Tokenizer
    from .conversation import Conversation

Pieces = Generator[str, None, None]


class Model:
    """A model that is ready to run; `gossamer.load` makes one.

    Streams may run side by side, from several threads too: each has a sequence of its own in the decoder, and steps
    take turns.

    Attributes:
        decoder: The native decoder, or the engine of a card, which has the same protocol.
        config: Its architecture.
        tokenizer: Text to token ids and back.
        info: Where the model came from: name, source, notes.
        weights: The packed matrices by canonical name.
        device: "cpu" or "cuda".
        last_stats: Figures of the stream that ended last; None before the first.
    """

    def __init__(
        self,
        decoder: Any,
        config: Transformer,
        tokenizer: Tokenizer,
        info: dict[str, Any],
        weights: dict[str, _core.Weight],
        device: str = "cpu",
    ) -> None:
        self.decoder: Any = decoder
        self.device = device
        self.config = config
        self.tokenizer = tokenizer
        self.info = info
        self.weights = weights
        self.last_stats: Stats | None = None
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._abandoned: deque[int] = deque()

    def __repr__(self) -> str:
        from .describe import describe

        return describe(self)

    def stream(
        self,
        prompt: str | Sequence[Message],
        sampling: SamplingOptions | None = None,
        *,
        chat: bool | None = None,
        **options: Any,
    ) -> Pieces:
        """Generates text piece by piece; `last_stats` tells how it went once the iterator ends or is closed.

        Args:
            prompt: Text, or chat messages `{"role": ..., "content": ...}`.
            sampling: All options; None takes the model's own defaults, as `defaults` has them.
            chat: Wrap a text prompt in the model's chat template; None does so when the model has one.
            **options: Single options that hold instead: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `min_p`,
                `repeat_penalty`, `seed`, `stop`; see `gossamer.SamplingOptions`.

        Returns:
            An iterator of non-empty pieces of text.

        Raises:
            GossamerError: an option is out of range, the prompt is empty or longer than the context, or there is no
                chat template to use. These come up here, before the first piece.
            TypeError: there is no such option.
        """
        check_names(options, ["chat"])
        run_options = (sampling or self.defaults()).changed(options)
        chat = self._chats(prompt, chat)
        return self._run(_Sequence(self), self._encode(prompt, chat), run_options, keep=False, begins=chat)

    def generate(
        self,
        prompt: str | Sequence[Message],
        sampling: SamplingOptions | None = None,
        *,
        chat: bool | None = None,
        **options: Any,
    ) -> str:
        """Returns the whole text that `stream` would give in pieces; takes the same options and raises the same."""
        return "".join(self.stream(prompt, sampling, chat=chat, **options))

    def conversation(self, system: str | None = None) -> Conversation:
        """Returns a new chat that keeps what it has computed from turn to turn.

        Args:
            system: A system message that stands before all others.
        """
        from .conversation import Conversation

        return Conversation(self, system)

    def defaults(self, fallback: SamplingOptions = GENERATE) -> SamplingOptions:
        """Returns the options that hold where none are given: the model's own.

        Args:
            fallback: What holds where the model has none: `GENERATE` or `CHAT` of `gossamer.sampling_options`.

        Raises:
            GossamerError: what the model says is out of range.
        """
        try:
            return model_defaults(self.tokenizer.generation, fallback)
        except GossamerError as error:
            where = self.info.get("path") or self.info.get("name", "the model")
            raise GossamerError(f"{where}: the model's own sampling defaults: {error}") from None

    def logits(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Runs tokens from an empty context, for evaluation.

        Args:
            token_ids: One or more token ids, at most the context length.

        Returns:
            Logits [tokens, vocab]; row i predicts token i + 1.

        Raises:
            GossamerError: no tokens, or more than the context holds.
        """
        tokens = np.asarray(token_ids, dtype=np.int32)
        self._check_length(tokens.size)
        sequence = _Sequence(self)
        try:
            return self._step(sequence.id, tokens, all_logits=True)
        finally:
            sequence.free()

    def _encode(self, prompt: str | Sequence[Message], chat: bool | None) -> list[int]:
        """Token ids of a prompt: at least one, at most the context length."""
        if isinstance(prompt, str):
            check_text("the prompt", prompt)
        if not self._chats(prompt, chat):
            ids = self.tokenizer.encode(str(prompt))
        else:
            ids = self.tokenizer.chat([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
        self._check_length(len(ids))
        if max(ids) >= self.config.vocab:
            raise GossamerError(
                f"the prompt holds token {max(ids)}, outside the model's vocabulary of {self.config.vocab}"
            )
        return ids

    def _chats(self, prompt: str | Sequence[Message], chat: bool | None) -> bool:
        """Whether a prompt goes through the chat template."""
        if isinstance(prompt, str) and (chat is False or not (chat or self.tokenizer.has_chat_template)):
            return False
        if not self.tokenizer.has_chat_template:
            raise GossamerError(f"{self.info.get('name', 'the model')} has no chat template")
        return True

    def _check_length(self, tokens: int) -> None:
        if tokens == 0:
            raise GossamerError("the prompt is empty")
        if tokens > self.config.context:
            raise GossamerError(f"the prompt has {tokens} tokens, and the model's context holds {self.config.context}")

    def _run(
        self,
        sequence: _Sequence,
        prompt: list[int],
        options: SamplingOptions,
        *,
        keep: bool,
        draw: int = 0,
        begins: bool = True,
    ) -> Pieces:
        """The decode loop. With `keep` the sequence ends up holding the text but for its last token.

        The text that comes begins where `begins` says so, and otherwise goes on with the prompt's.
        """
        stats = Stats(len(prompt), self.decoder.weight_bytes, device=self.device, sampling=options)
        stats.unheeded = tuple(unheeded(self.tokenizer.generation))
        sample = sampler(options, draw)
        pieces, stop = self.tokenizer.stream(begins), _StopText(options.stop)
        tokens, kv_tokens, finish = list(prompt), 0, ""
        start = time.perf_counter()
        try:
            stats.reused_tokens = sequence.keep_common(prompt)
            logits = sequence.extend(prompt[stats.reused_tokens :])
            while not finish:
                token = sample(logits, tokens)
                tokens.append(token)
                stats.new_tokens += 1
                ended = token in self.tokenizer.eos_ids
                text = "" if ended else stop.push(pieces.push(token))
                if ended:
                    finish = "eos"
                elif stats.new_tokens == options.max_new_tokens:
                    finish = "length"
                elif len(sequence.tokens) == self.config.context:
                    finish = "context"
                if finish and not stop.found:
                    text += stop.push(pieces.flush())
                if stop.found:
                    finish = "stop"
                if finish:
                    text += stop.flush()
                elapsed = time.perf_counter() - start
                if stats.new_tokens == 1:
                    stats.prefill_seconds = elapsed
                else:
                    stats.decode_seconds += elapsed
                    kv_tokens += len(sequence.tokens)
                if finish:
                    stats.finish = finish
                if text:
                    yield text
                start = time.perf_counter()
                if not finish:
                    logits = sequence.extend([token])
        finally:
            if kv_tokens:
                stats.kv_bytes = self.decoder.kv_bytes_per_token * kv_tokens / (stats.new_tokens - 1)
            self.last_stats = stats
            if not keep:
                sequence.free()

    def _new_sequence(self) -> _Sequence:
        return _Sequence(self)

    def _step(self, sequence: int, tokens: NDArray[np.int32], all_logits: bool = False) -> NDArray[np.float32]:
        with self._lock:
            self._free_abandoned()
            logits: NDArray[np.float32] = self.decoder.step([(sequence, tokens)], all_logits)
            return logits

    def _free(self, sequence: int) -> None:
        # The garbage collector may close a dropped stream at any moment, in a thread that holds the lock: then the
        # sequence is only noted, and the next step frees it.
        self._abandoned.append(sequence)
        if self._lock.acquire(blocking=False):
            try:
                self._free_abandoned()
            finally:
                self._lock.release()

    def _free_abandoned(self) -> None:
        while self._abandoned:
            self.decoder.free(self._abandoned.popleft())


class _Sequence:
    """A sequence in the decoder and the token ids that it holds."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.id = next(model._ids)
        self.tokens: list[int] = []

    def keep_common(self, prompt: list[int]) -> int:
        """Rolls back to the longest common prefix with `prompt`, short of its last token, whose logits are needed."""
        with self.model._lock:
            held = self.model.decoder.length(self.id)  # Ctrl-C may have come between a step and its note in `tokens`
            pairs = zip(self.tokens[:held], prompt[:-1], strict=False)
            common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            if common < held:
                self.model.decoder.rollback(self.id, held - common)
        del self.tokens[common:]
        return common

    def extend(self, tokens: list[int]) -> NDArray[np.float32]:
        """Appends tokens; returns the last one's logits [vocab]. An interrupted call leaves the sequence as it was."""
        (logits,) = self.model._step(self.id, np.asarray(tokens, dtype=np.int32))
        self.tokens += tokens
        return np.asarray(logits)

    def free(self) -> None:
        self.model._free(self.id)
        self.tokens = []
        self.id = next(self.model._ids)


class _StopText:
    """Passes text on until a stop string, holding back an end that may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
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
