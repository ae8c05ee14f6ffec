"""The tokens that steer Whisper, found by their names in a tokenizer's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from .languages import LANGUAGES, language_code

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

SECONDS = 0.02
"""What lies between two timestamps."""

_MOST = 1500  # timestamps behind the first one
_HEADS = 1 << 16


@dataclass(frozen=True)
class SpeechTokens:
    """Token ids.

    Attributes:
        start: Begins a transcript.
        end: Ends it.
        previous: Begins the text that came before.
        no_speech: Whose probability behind `start` is that of silence.
        no_timestamps: Asks for text without times.
        first_time: Of 0 seconds; those behind it are 0.02 seconds apart.
        tasks: Of "transcribe" and "translate"; empty where a model knows English alone.
        languages: By code; empty where a model knows English alone.
        never: Not part of a transcript.
        never_first: Nor of its begin.
        heads: (layer, head) of the decoder whose attention follows the words in time; empty where nobody says.
    """

    start: int
    end: int
    previous: int
    no_speech: int
    no_timestamps: int
    first_time: int
    tasks: Mapping[str, int]
    languages: Mapping[str, int]
    never: Sequence[int]
    never_first: Sequence[int]
    heads: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab: int) -> SpeechTokens:
        """Finds them.

        Args:
            tokenizer: Of the model.
            vocab: Tokens of the model, timestamps included, which older tokenizers have not.

        Raises:
            GossamerError: some are missing: it is no tokenizer of a Whisper.
        """

        def needed(*names: str) -> int:
            for name in names:
                if (token := tokenizer.token_id(name)) is not None:
                    return token
            raise GossamerError(f"the tokenizer has no {names[0]}: this is no speech model that gossamer knows")

        untimed = needed("<|notimestamps|>")
        tasks = {task: needed(f"<|{task}|>") for task in ("transcribe", "translate")}
        start, previous = needed("<|startoftranscript|>"), needed("<|startofprev|>")
        silence = needed("<|nospeech|>", "<|nocaptions|>")
        spoken = ((code, tokenizer.token_id(f"<|{code}|>")) for code in LANGUAGES)
        languages = {code: token for code, token in spoken if token is not None}
        end = needed("<|endoftext|>")
        said = tokenizer.generation
        if untimed + 1 + _MOST >= vocab:
            raise GossamerError(f"the model has {vocab} tokens, and no room for timestamps behind token {untimed}")
        steering = {start, previous, silence, *tasks.values(), *languages.values(), needed("<|startoflm|>")}
        blank = tokenizer.encode(" ", special=False)
        # The vocabulary of models for English alone ends before the tokens of languages but one.
        several = vocab > _english_only(untimed)
        return cls(
            start=start,
            end=end,
            previous=previous,
            no_speech=silence,
            no_timestamps=untimed,
            first_time=untimed + 1,
            tasks=tasks if several else {},
            languages=languages if several else {},
            never=sorted(steering | {token for token in _ids(said, "suppress_tokens", vocab) if token != end}),
            never_first=sorted({end, *(blank[:1]), *_ids(said, "begin_suppress_tokens", vocab)}),
            heads=_heads(said),
        )

    def prompt(self, language: str, task: str, *, timed: bool) -> list[int]:
        """Returns what a transcript begins with.

        Raises:
            GossamerError: the model does not know the language, or no other than English.
        """
        end = [] if timed else [self.no_timestamps]
        if not self.languages:
            self.check(language, task)
            return [self.start, *end]
        return [self.start, self.languages[self.check(language, task)], self.tasks[task], *end]

    def check(self, language: str, task: str) -> str:
        """Returns the code of a language that the model knows.

        Raises:
            GossamerError: it does not, or not how to translate.
        """
        code = language_code(language)
        if not self.languages and (code != "en" or task != "transcribe"):
            raise GossamerError("the model knows English alone, and does not translate")
        if self.languages and code not in self.languages:
            raise GossamerError(f"the model does not know {LANGUAGES[code]} ({code})")
        return code


def _english_only(untimed: int) -> int:
    """Tokens of the models for English alone, which have `<|notimestamps|>` one lower than those for many languages."""
    return 51_864 if untimed == 50_362 else 0


def _ids(said: Mapping[str, Any], key: str, vocab: int) -> list[int]:
    found = said.get(key) or []
    if not isinstance(found, list) or not all(type(token) is int and -1 <= token < vocab for token in found):
        raise GossamerError(f"{key} must be a list of tokens, got {found!r:.80}")
    return [token for token in found if token >= 0]


def _heads(said: Mapping[str, Any]) -> list[tuple[int, int]]:
    found = said.get("alignment_heads") or []
    fair = isinstance(found, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(one) is int and 0 <= one < _HEADS for one in pair)
        for pair in found
    )
    if not fair:
        raise GossamerError(f"alignment_heads must be a list of [layer, head], got {found!r:.80}")
    return [(layer, head) for layer, head in found]
