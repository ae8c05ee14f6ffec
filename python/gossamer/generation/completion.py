"""What came of one text, whole: for those who want more of it than its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .sampling import Logits, likeliest, log_softmax

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer
    from .stats import Stats


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how likely the model held it to be.

    Attributes:
        token: Its number.
        bytes: What it stands for; no text where it is part of a character.
        logprob: Natural logarithm of its probability by the model alone: before biases, penalties and temperature.
        top: The likeliest tokens at its position, the likeliest first; of those, none.
        offset: Letters of the text before it; a character that several tokens make up begins with the first of them.
    """

    token: int
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    offset: int = 0

    @property
    def text(self) -> str:
        """Its text; bytes that are no UTF-8 are U+FFFD."""
        return self.bytes.decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        fields = {"token": self.token, "text": self.text, "bytes": list(self.bytes), "logprob": self.logprob}
        return fields | ({"top": [other.to_dict() for other in self.top]} if self.top else {})


def token_logprob(tokenizer: Tokenizer, logits: Logits, token: int, alternatives: int, offset: int = 0) -> TokenLogprob:
    """Returns a chosen token with its log-probability and those of the likeliest.

    Args:
        tokenizer: Tells the tokens' bytes.
        logits: Of all tokens, [vocab], as the model gave them.
        token: The one that was chosen.
        alternatives: How many of the likeliest.
        offset: Letters of the text before it.
    """
    best = likeliest(logits, alternatives)
    own, *others = log_softmax(logits)[[token, *best]].tolist()
    top = [
        TokenLogprob(other, tokenizer.token_bytes(other), value)
        for other, value in zip(best.tolist(), others, strict=True)
    ]
    return TokenLogprob(token, tokenizer.token_bytes(token), own, tuple(top), offset)


@dataclass(frozen=True)
class Completion:
    """One text that a model wrote.

    Attributes:
        text: The text.
        tokens: What was chosen, an end token included.
        stats: Counts and times.
        logprobs: Of each token, where `SamplingOptions.logprobs` asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def finish(self) -> str:
        """Why the text ended: "eos", "stop", "length", "context" or "closed", as `Stats` has it."""
        return self.stats.finish
