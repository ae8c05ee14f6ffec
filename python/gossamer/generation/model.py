"""`Model`: a decoder and its tokenizer, and what turns prompts into text."""

from __future__ import annotations

import itertools
from collections import abc
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import CacheFull
from ..errors import GossamerError
from ..folders import called
from ..kinds import whole_number
from ..text.messages import Message
from .drafts import drafts, guessing
from .held import Held
from .prompts import as_ids, as_input, asked, chats, check_head, check_length, text_after
from .sampling_options import GENERATE, OF_A_STREAM, SamplingOptions, chosen, model_defaults, text_alone
from .scheduler import MOST
from .single import Cancel, Pieces, run_text

if TYPE_CHECKING:
    from pathlib import Path

    from .. import _core
    from ..arch.spec import Transformer
    from ..audio.reading import Source
    from ..audio.transcript import Transcript
    from ..engine import Engine, Mix
    from ..progress import Progress
    from ..text.tokenizer import Tokenizer
    from .adapters import Adapters, Chosen
    from .async_stream import AsyncPieces
    from .completion import Completion
    from .conversation import Conversation
    from .cost import StepCost
    from .drafts import Draft, Drafts
    from .grammar import Grammars
    from .stats import Stats


class Model:
    """A model that is ready to run; `gossamer.load` makes one.

    Streams may run side by side, from several threads too: each has a sequence of its own in the decoder, and steps
    take turns.

    Attributes:
        decoder: The engine: the native decoder, or that of a GPU.
        config: Its architecture.
        tokenizer: Text to token ids and back.
        info: Where the model came from: name, source, notes.
        weights: The packed matrices by canonical name.
        device: "cpu" or "cuda".
        vectors: Norms and biases by canonical name.
        last_stats: Figures of the stream that ended last; None before the first.
    """

    def __init__(
        self,
        decoder: Engine,
        config: Transformer,
        tokenizer: Tokenizer,
        info: dict[str, Any],
        weights: dict[str, _core.Weight],
        device: str = "cpu",
        vectors: dict[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self.decoder = decoder
        self.device = device
        self.config = config
        self.tokenizer = tokenizer
        self.info = info
        self.weights = weights
        self.vectors = vectors or {}
        self.last_stats: Stats | None = None
        self._ids = itertools.count()

    def __repr__(self) -> str:
        from .describe import describe

        return describe(self)

    @cached_property
    def adapters(self) -> Adapters:
        """What is added to its linears for the texts that ask for it; none at first."""
        from .adapters import Adapters

        return Adapters(self)

    @cached_property
    def cost(self) -> StepCost | None:
        """What steps cost here: measured before, or else estimated; None for engines without threads, as on a GPU."""
        from .cost import StepCost, context_read
        from .cost_measured import known

        threads = getattr(self.decoder, "threads", 0)
        return StepCost(known(self.decoder, self.config, self.weights), context_read(self.decoder)) if threads else None

    def drafts(
        self, kind: str = "auto", corpus: str | Path | None = None, progress: Progress | None = None
    ) -> Drafts | None:
        """Returns how tokens are guessed, as `draft` of `stream` takes it: `gossamer.generation.drafts.drafts`."""
        return drafts(self, kind, corpus, progress)

    @cached_property
    def _weight_streams(self) -> dict[str, float]:
        from .weight_streams import own_streams

        return own_streams(self)

    @cached_property
    def _grammars(self) -> Grammars:
        from .grammar import Grammars

        return Grammars(self.tokenizer, self.config.vocab)

    def stream(
        self,
        prompt: str | abc.Sequence[Message],
        sampling: SamplingOptions | None = None,
        *,
        chat: bool | None = None,
        adapters: Chosen = None,
        cancel: Cancel = None,
        draft: Draft = "auto",
        prompt_cache: str | Path | None = None,
        **options: Any,
    ) -> Pieces:
        """Generates text piece by piece; `last_stats` tells how it went once the iterator ends or is closed.

        Args:
            prompt: Text, or chat messages `{"role": ..., "content": ...}`.
            sampling: All options; None takes the model's own defaults, as `defaults` has them.
            chat: Wrap a text prompt in the model's chat template; None does so when the model has one.
            adapters: Names of loaded adapters, or weights by name; None takes what `Model.adapters` says.
            cancel: Called before each step; where it returns true, the text ends as far as it came.
            draft: "off", "ngram", "self" or "auto", or what `drafts` returns: whether tokens are guessed and computed
                in one step. The text is the same.
            prompt_cache: A file that keeps the prompt's keys and values: what it has of the prompt is not computed
                again. It is written where it does not have them.
            **options: Single options that hold instead, as `max_new_tokens` or `temperature`: any of
                `gossamer.SamplingOptions`.

        Returns:
            An iterator of non-empty pieces of text.

        Raises:
            GossamerError: an option is out of range, the prompt is empty or longer than the context, or there is no
                chat template to use. These come up here, before the first piece.
            TypeError: there is no such option.
        """
        run_options = text_alone(chosen(sampling, self.defaults, options, OF_A_STREAM))
        chat, drafts = chats(self, prompt, chat), guessing(self, draft, run_options)
        tokens, reads = asked(self, prompt, chat, run_options.context_shift is not None)
        held = self._new_sequence(self.mix(adapters), reads)
        text = text_after(self, tokens, run_options, 0, chat, held.mix)
        if prompt_cache is not None:
            from .prompt_cache import PromptCache, cached_text

            return cached_text(self, held, text, PromptCache(self, prompt_cache, adapters), drafts, cancel)
        return run_text(self, held, text, keep=False, drafts=drafts, cancel=cancel)

    def astream(
        self,
        prompt: str | abc.Sequence[Message],
        sampling: SamplingOptions | None = None,
        *,
        cancel: Cancel = None,
        **options: Any,
    ) -> AsyncPieces:
        """Returns what `stream` gives as an asynchronous iterator, for `async for`; other arguments are the same.

        Steps are taken in a thread of the running loop's executor. A task that is cancelled, or leaves the iterator by
        `aclose`, ends the text within a step and gives its memory back.
        """
        from .async_stream import async_stream

        return async_stream(self, prompt, sampling, cancel, options)

    def generate(
        self,
        prompt: str | abc.Sequence[Message],
        sampling: SamplingOptions | None = None,
        *,
        chat: bool | None = None,
        adapters: Chosen = None,
        cancel: Cancel = None,
        draft: Draft = "auto",
        prompt_cache: str | Path | None = None,
        **options: Any,
    ) -> str:
        """Returns the whole text that `stream` would give in pieces; takes the same options and raises the same."""
        options |= {"chat": chat, "adapters": adapters, "cancel": cancel, "draft": draft, "prompt_cache": prompt_cache}
        return "".join(self.stream(prompt, sampling, **options))

    def completions(
        self,
        prompt: str | abc.Sequence[Message],
        n: int = 1,
        sampling: SamplingOptions | None = None,
        *,
        chat: bool | None = None,
        adapters: Chosen = None,
        cancel: Cancel = None,
        draft: Draft = "auto",
        most: int = MOST,
        **options: Any,
    ) -> list[Completion]:
        """Writes several texts after one prompt, which is computed once, and tells all that there is to tell of them.

        The first is the text that `generate` gives; each of the others is drawn with other random numbers, or is the
        next best one of beams.

        Args:
            prompt: As of `stream`.
            n: How many.
            sampling: As of `stream`.
            chat: As of `stream`.
            adapters: As of `stream`.
            cancel: As of `stream`; ends all of them.
            draft: As of `stream`.
            most: Texts at once.
            **options: As of `stream`; `logprobs` keeps how likely each token was.

        Raises:
            GossamerError: as `stream`, or `n` or `most` is less than 1.
            TypeError: there is no such option.
        """
        from .batch import Request, completions

        run_options = chosen(sampling, self.defaults, options, ["adapters", "cancel", "chat", "draft", "most", "n"])
        n, most = whole_number("n", n, 1), whole_number("most", most, 1)
        return completions(self, Request(prompt, run_options, chat, 0, adapters, cancel), n, most, draft)

    def generate_batch(
        self,
        prompts: abc.Iterable[str | abc.Sequence[Message]],
        sampling: SamplingOptions | None = None,
        *,
        chat: bool | None = None,
        adapters: Chosen = None,
        draft: Draft = "auto",
        most: int = MOST,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers many prompts, some at once: one pass over the weights serves all that are being written.

        A text is the one that `generate` gives, whatever its company; where tokens are drawn, that of each prompt is
        drawn with other random numbers, so that a prompt that is given twice has two answers. Beginnings that prompts
        share are computed once.

        Args:
            prompts: As of `stream`.
            sampling: As of `stream`, for all of them.
            chat: As of `stream`.
            adapters: As of `stream`.
            draft: As of `stream`.
            most: Texts at once.
            progress: Called with (texts done, texts, what).
            **options: As of `stream`.

        Returns:
            The texts, in the order of the prompts.

        Raises:
            GossamerError: as `stream`, naming the prompt by its number from 1; before anything is computed where it is
                about options or about `most`.
            TypeError: there is no such option.
        """
        from .batch import Request, texts

        names = ["adapters", "chat", "draft", "most", "progress"]
        run_options = text_alone(chosen(sampling, self.defaults, options, names))
        if isinstance(prompts, (str, abc.Mapping)):
            raise GossamerError("prompts must be a list of them, not one text or message")
        requests = [Request(prompt, run_options, chat, draw, adapters) for draw, prompt in enumerate(prompts)]
        return texts(self, requests, most, guessing(self, draft, run_options), progress)

    def transcribe(self, audio: Source, *, progress: Progress | None = None, **options: Any) -> Transcript:
        """Writes down what is said, where the model is one of speech (Whisper).

        Args:
            audio: A path, an open binary file, or mono samples at 16 kHz as an array of floats. Of any length: it is
                read by windows of 30 seconds.
            progress: Called with (seconds done, seconds, what).
            **options: See `gossamer.audio.options.SpeechOptions`: `language`, `task`, `beams`, `words`, ….

        Returns:
            Segments with their times, `text`, and what language it is. `gossamer.generation.speech.segments` gives
            them one by one.

        Raises:
            GossamerError: it is no speech model or does not know the language, an option is out of range, or the audio
                is none.
            TypeError: there is no such option.
        """
        from .speech import transcribe

        return transcribe(self, audio, progress, **options)

    def embed(self, texts: abc.Sequence[str], **options: Any) -> NDArray[np.float32]:
        """Returns vectors of texts, [texts, hidden], of a model that is an encoder.

        Takes the options of `gossamer.generation.embedding.embed` (`pool`, `normalize`, `truncate`, `adapters`,
        `progress`), and raises the same.
        """
        from .embedding import embed

        return embed(self, texts, **options)

    def conversation(
        self, system: str | None = None, adapters: Chosen = None, prompt_cache: str | Path | None = None
    ) -> Conversation:
        """Returns a new chat that keeps what it has computed from turn to turn.

        Args:
            system: A system message that stands before all others.
            adapters: As for `stream`; looked up anew in every turn, and what was computed with others is not used.
            prompt_cache: A file of keys and values that the chat may begin with; `Conversation.keep` writes it.

        Raises:
            GossamerError: such a file cannot be had.
        """
        from .conversation import Conversation

        return Conversation(self, system, adapters, prompt_cache)

    def defaults(self, fallback: SamplingOptions = GENERATE) -> SamplingOptions:
        """Returns the options that hold where none are given: the model's own.

        Args:
            fallback: What holds where the model has none: `GENERATE` or `CHAT` of
                `gossamer.generation.sampling_options`.

        Raises:
            GossamerError: what the model says is out of range.
        """
        try:
            return model_defaults(self.tokenizer.generation, fallback, self.tokenizer.eos_ids)
        except GossamerError as error:
            raise GossamerError(f"{called(self.info)}: the model's own sampling defaults: {error}") from None

    def logits(
        self,
        token_ids: abc.Sequence[int] | NDArray[np.integer[Any]],
        adapters: Chosen = None,
        reads: abc.Sequence[int] | NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Runs tokens from an empty context, for evaluation.

        Args:
            token_ids: One or more token ids, at most the context length.
            adapters: As for `stream`.
            reads: Token ids of the input that a decoder with an encoder reads, or frames [frames, bins] of sound.

        Returns:
            Logits [tokens, vocab]; row i predicts token i + 1.

        Raises:
            GossamerError: no tokens, more than the context or the cache holds, or `reads` is missing or needless.
        """
        check_head(self)
        tokens = as_ids(token_ids)
        check_length(self, tokens.size)
        held = self._new_sequence(self.mix(adapters), as_input(self, reads))
        try:
            return self.decoder.step([(held.prepare(), tokens)], all_logits=True)
        except CacheFull as error:
            raise GossamerError(str(error)) from None
        finally:
            held.free()

    def mix(self, adapters: Chosen = None) -> Mix:
        """Returns the adapters of a new sequence as the engine takes them.

        Raises:
            GossamerError: there is no such adapter, or a weight is not finite.
        """
        none = not adapters and "adapters" not in self.__dict__  # nothing was ever loaded
        return () if none else self.adapters.mix(adapters)

    def _new_sequence(self, mix: Mix = (), reads: NDArray[Any] | None = None) -> Held:
        return Held(self.decoder, self._ids, mix, reads)
