"""Log-probabilities as OpenAI's clients know them, of chat and of plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..generation.completion import TokenLogprob

_LEAST = -9999.0  # stands for a probability of zero, whose logarithm JSON cannot write


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Returns the object of a chat's answer, or of a part of one."""
    return {
        "content": [{**_entry(each), "top_logprobs": list(map(_entry, each.top))} for each in tokens],
        "refusal": None,
    }


def _entry(each: TokenLogprob) -> dict[str, Any]:
    return {"token": each.text, "logprob": max(each.logprob, _LEAST), "bytes": list(each.bytes)}


def completion_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Returns the object of a plain completion, or of a part of one."""
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [max(each.logprob, _LEAST) for each in tokens],
        "top_logprobs": [_beside(each) for each in tokens],
        "text_offset": [each.offset for each in tokens],
    }


def _beside(each: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the chosen one, by their texts."""
    return {other.text: max(other.logprob, _LEAST) for other in (*each.top, each)} if each.top else {}
