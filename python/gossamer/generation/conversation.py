"""`Conversation`: a chat that computes only what is new in each turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .drafts import guessing
from .prompt_cache import PromptCache
from .prompts import encode, text_after
from .sampling_options import CHAT, SamplingOptions, chosen, text_alone
from .single import Pieces, run_text

if TYPE_CHECKING:
    from pathlib import Path

    from ..text.messages import Message
    from .adapters import Chosen
    from .drafts import Draft
    from .model import Model


class Conversation:
    """A chat with a model: the messages so far, and the sequence that holds them.

    Each turn computes only what the sequence does not hold yet: the tokens of the whole chat are compared with those
    in the sequence, which is rolled back to where they part. It is for one thread at a time; a model has any number.

    Attributes:
        adapters: Of the turns to come, as for `Model.stream`.
        messages: The turns so far, `{"role": ..., "content": ...}`, behind the system message where there is one.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        adapters: Chosen = None,
        prompt_cache: str | Path | None = None,
    ) -> None:
        self.model = model
        self.adapters = adapters
        self.system = system
        self.messages: list[Message] = self._opening()
        self._sequence = model._new_sequence()
        self._turn: Pieces | None = None
        self._cache = None if prompt_cache is None else PromptCache(model, prompt_cache, adapters)
        if self._cache is not None:
            self._sequence.adapt(model.mix(adapters))
            self._cache.load(self._sequence)

    def say(
        self, text: str, sampling: SamplingOptions | None = None, *, draft: Draft = "auto", **options: Any
    ) -> Pieces:
        """Answers one message, piece by piece.

        An answer that is closed early, by Ctrl-C too, is kept as far as it came; a turn without any answer leaves
        the chat as it was. Every turn draws other random numbers, so that a question that is asked again may be
        answered otherwise; the same chat with the same seed is the same again.

        Args:
            text: The user's message.
            sampling: As of `Model.stream`, but a model without defaults of its own draws: see
                `gossamer.generation.sampling_options.CHAT`.
            draft: As of `Model.stream`.
            options: As of `Model.stream`.

        Returns:
            An iterator of non-empty pieces of text.

        Raises:
            GossamerError: as `Model.stream`; the chat is left as it was.
            TypeError: as `Model.stream`.
        """
        self._end_turn()
        run_options = text_alone(chosen(sampling, lambda: self.model.defaults(CHAT), options, ["draft"]))
        asked = [*self.messages, {"role": "user", "content": text}]
        drafts = guessing(self.model, draft, run_options)
        mix = self.model.mix(self.adapters)
        prompt = encode(self.model, asked, chat=True, shifts=run_options.context_shift is not None)
        written = text_after(self.model, prompt, run_options, len(self.messages), True, mix)
        self._sequence.adapt(mix)
        pieces = run_text(self.model, self._sequence, written, keep=True, drafts=drafts)
        self._turn = self._answer(asked, pieces)
        return self._turn

    def keep(self) -> None:
        """Writes the chat's keys and values to its prompt cache; nothing where it has none.

        Raises:
            GossamerError: the file cannot be written.
        """
        self._end_turn()
        if self._cache is not None:
            self._cache.save(self._sequence, self._sequence.tokens)

    def reset(self) -> None:
        """Forgets all messages but the system's and gives the sequence's memory back."""
        self._end_turn()
        self.messages = self._opening()
        self._sequence.free()

    def _opening(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

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
