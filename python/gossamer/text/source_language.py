"""The language that a text is in, which models that translate many are told by a token beside the text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import GossamerError, did_you_mean

if TYPE_CHECKING:
    import tokenizers

_FORM = re.compile(r"__[a-z]{2,3}__|[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")  # __en__ of M2M-100, eng_Latn of NLLB, en_XX
_PROBE = "a"


def language_token(language: str, known: dict[str, int]) -> str:
    """Returns the token of a language, which may be written without the underscores around it.

    Args:
        language: As the user calls it.
        known: Tokens that may be meant.

    Raises:
        GossamerError: there is none such.
    """
    for token in (language, f"__{language}__"):
        if token in known:
            return token
    meant = did_you_mean(language, (token.strip("_") for token in languages(known)))
    raise GossamerError(f"the model has no token of the language {language!r:.40}{meant}")


def languages(known: Iterable[str]) -> list[str]:
    """Returns those of some tokens that name languages."""
    return [token for token in known if _FORM.fullmatch(token)]


def mark_with(backend: tokenizers.Tokenizer, before: list[str], behind: list[str]) -> None:
    """Has tokens put before a text, or before and behind two.

    Raises:
        GossamerError: one of them is no token of the model.
    """
    from tokenizers import processors

    marks = {text: backend.token_to_id(text) for text in (*before, *behind)}
    for text, token in marks.items():
        if token is None:
            raise GossamerError(f"{text!r:.80} is no token of the model")
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind], pair=[*before, "$A", "$B", *behind], special_tokens=list(marks.items())
    )


def mark_source(backend: tokenizers.Tokenizer, language: str, known: dict[str, int]) -> None:
    """Has texts be marked as written in another language than now, in the same place.

    Args:
        backend: The tokenizer.
        language: As the user calls it.
        known: The tokens that stand beside the learned vocabulary.

    Raises:
        GossamerError: texts are not marked with a language, or the model knows none such.
    """
    found = backend.encode(_PROBE)
    own = [at for at, special in enumerate(found.special_tokens_mask) if not special]
    sides = [found.tokens[: own[0]], found.tokens[own[-1] + 1 :]] if own else [[], []]
    if not any(_FORM.fullmatch(token) for side in sides for token in side):
        raise GossamerError("the model is not told which language a text is in")
    mark = language_token(language, {token: known[token] for token in languages(known)})
    before, behind = ([mark if _FORM.fullmatch(token) else token for token in side] for side in sides)
    mark_with(backend, before, behind)
