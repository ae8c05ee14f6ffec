"""`Model`: a decoder and its tokenizer, and the loop that turns a prompt into text."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import GossamerError
from .sampling import Sampler, sampler
from .stats import Stats

if TYPE_CHECKING:
    from . import _core
    from .config import DecoderConfig
    from .tokenizer import Tokenizer

Message = dict[str, str]
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
        config: DecoderConfig,
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

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        chat: bool | None = None,
    ) -> Pieces:
        """Generates text piece by piece; `last_stats` tells how it went once the iterator ends or is closed.

        Args:
            prompt: Text, or chat messages `{"role": ..., "content": ...}`.
            max_new_tokens: Most tokens to generate; fewer when the model ends its text, a stop string comes, or the
                context is full.
            temperature: As the five below, see `gossamer.sampling.sampler`; 0 takes the likeliest token.
            top_k: Keep the k likeliest tokens.
            top_p: Keep the likeliest tokens that reach this probability.
            min_p: Keep tokens at least this likely, relative to the likeliest.
            repeat_penalty: Make tokens that came lately less likely.
            seed: The same seed gives the same text.
            stop: Strings that end the text; they and what follows them are not part of it.
            chat: Wrap a text prompt in the model's chat template; None does so when the model has one.

        Returns:
            An iterator of non-empty pieces of text.

        Raises:
            GossamerError: an option is out of range, the prompt is empty or longer than the context, or there is no
                chat template to use. These come up here, before the first piece.
        """
        options = _Options(
            sampler(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repeat_penalty=repeat_penalty,
                seed=seed,
            ),
            max_new_tokens,
            stop,
        )
        return self._run(_Sequence(self), self._encode(prompt, chat), options, keep=False)

    def generate(self, prompt: str | Sequence[Message], **options: Any) -> str:
        """Returns the whole text that `stream` would give in pieces; takes the same options and raises the same."""
        return "".join(self.stream(prompt, **options))

    def conversation(self) -> Conversation:
        """Returns a new, empty chat that keeps what it has computed from turn to turn."""
        return Conversation(self)

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
        text = isinstance(prompt, str)
        messages: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if any("\ud800" <= letter <= "\udfff" for message in messages for letter in message.get("content", "")):
            raise GossamerError("the prompt is not valid Unicode text: it holds lone surrogates")
        if chat is None:
            chat = self.tokenizer.has_chat_template or not text
        if chat and not self.tokenizer.has_chat_template:
            raise GossamerError(f"{self.info.get('name', 'the model')} has no chat template")
        if isinstance(prompt, str) and not chat:
            ids = self.tokenizer.encode(prompt)
        else:
            ids = self.tokenizer.chat(list(messages))
        self._check_length(len(ids))
        return ids

    def _check_length(self, tokens: int) -> None:
        if tokens == 0:
            raise GossamerError("the prompt is empty")
        if tokens > self.config.context:
            raise GossamerError(f"the prompt has {tokens} tokens, and the model's context holds {self.config.context}")

    def _run(self, sequence: _Sequence, prompt: list[int], options: _Options, *, keep: bool) -> Pieces:
        """The decode loop. With `keep` the sequence ends up holding the text but for its last token."""
        stats = Stats(len(prompt), self.decoder.weight_bytes, device=self.device)
        pieces, stop = self.tokenizer.stream(), _StopText(options.stop)
        tokens, kv_tokens, finish = list(prompt), 0, ""
        start = time.perf_counter()
        try:
            stats.reused_tokens = sequence.keep_common(prompt)
            logits = sequence.extend(prompt[stats.reused_tokens :])
            while not finish:
                token = options.sample(logits, tokens)
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


class Conversation:
    """A chat with a model: the messages so far, and the sequence that holds them.

    Each turn computes only what the sequence does not hold yet: the tokens of the whole chat are compared with those
    in the sequence, which is rolled back to where they part.

    Attributes:
        messages: The turns so far, `{"role": ..., "content": ...}`; a system message may be put first before the
            first turn.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.messages: list[Message] = []
        self._sequence = _Sequence(model)
        self._turn: Pieces | None = None

    def say(self, text: str, **options: Any) -> Pieces:
        """Answers one message, piece by piece.

        An answer that is closed early, by Ctrl-C too, is kept as far as it came; a turn without any answer leaves
        the chat as it was.

        Args:
            text: The user's message.
            options: As of `Model.stream`, without `chat`.

        Returns:
            An iterator of non-empty pieces of text.

        Raises:
            GossamerError: as `Model.stream`; the chat is left as it was.
        """
        self._end_turn()
        values = {"max_new_tokens": 128, "stop": (), **options}
        limit, stop = values.pop("max_new_tokens"), values.pop("stop")
        run_options = _Options(sampler(**values), limit, stop)
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self.model._encode(asked, chat=True)
        self._turn = self._answer(asked, self.model._run(self._sequence, prompt, run_options, keep=True))
        return self._turn

    def reset(self) -> None:
        """Forgets all messages and gives the sequence's memory back."""
        self._end_turn()
        self.messages = []
        self._sequence.free()

    def _answer(self, asked: list[Message], pieces: Pieces) -> Pieces:
        answer: list[str] = []
        try:
            for piece in pieces:
                answer.append(piece)
                yield piece
        finally:
            pieces.close()
            if answer:
                self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.close()
            self._turn = None


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


class _Options:
    """Checked options of one run."""

    def __init__(self, sample: Sampler, max_new_tokens: int, stop: str | Iterable[str]) -> None:
        if max_new_tokens < 1:
            raise GossamerError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.sample = sample
        self.max_new_tokens = max_new_tokens
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self.stop):
            raise GossamerError("stop: a stop string must not be empty")


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
