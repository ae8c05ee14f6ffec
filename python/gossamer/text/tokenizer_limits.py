"""What a tokenizer.json may ask of the library that runs it, which has no limits of its own."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError

if TYPE_CHECKING:
    import tokenizers

_MOST_GROWTH = 64  # letters that one may become: one or two in all tokenizers that are known
LONGEST = 1024
"""Letters of a text that is put into others or found in them."""

_LONG_CONTENT = re.compile(rb'"content"\s*:\s*"(?:[^"\\]|\\.){%d}' % (LONGEST + 1))
_LOOKS = re.compile(r"\(\?[=!<]|\\[bBGAzZ]|[\^$]")  # what matches between letters


def check_contents(data: bytes) -> None:
    """Refuses a tokenizer.json with an added token so long that finding it in texts takes a hundred times its bytes.

    Raises:
        GossamerError: there is one.
    """
    if _LONG_CONTENT.search(data):
        raise GossamerError(f"a token or another content of it has more than {LONGEST} letters")


def check_growth(backend: tokenizers.Tokenizer) -> None:
    """Refuses a tokenizer that makes long texts of short ones, step by step: few such steps fill any memory.

    Raises:
        GossamerError: its normalizer or decoder does; the line says which.
    """
    for name in ("normalizer", "decoder"):
        part = getattr(backend, name)
        if part is not None and (growth := _growth(name, json.loads(part.__getstate__()))) > _MOST_GROWTH:
            raise GossamerError(f"its {name} makes up to {growth:.3g} letters of one")


def _growth(name: str, step: Any) -> float:
    """Most letters that one becomes in a step."""
    if not isinstance(step, dict):
        return 1.0
    growth = 1.0
    for inner in step.get("normalizers") or step.get("decoders") or ():
        growth = min(growth * _growth(name, inner), 1e300)
    longest = max((len(value) for value in step.values() if isinstance(value, str)), default=0)
    if longest > LONGEST:
        raise GossamerError(f"its {name} puts a text of {longest} letters into others")
    pattern, content = step.get("pattern"), step.get("content")
    if step.get("type") == "Replace" and isinstance(pattern, dict) and isinstance(content, str):
        text, regex = pattern.get("String"), pattern.get("Regex")
        if text or (regex and not _may_be_empty(regex)):
            growth *= max(1.0, len(content) / len(text or "1"))
        else:
            growth *= 1 + len(content)  # between any two letters
    return growth


def _may_be_empty(regex: str) -> bool:
    """Whether a regular expression may match a place where there is nothing; yes where that cannot be told."""
    try:
        return bool(_LOOKS.search(regex) or re.search(regex, ""))
    except (re.error, RecursionError, OverflowError):
        return True


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Turns what the library raises within, panics included, which are no `Exception`, into `GossamerError`."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise GossamerError(f"{what}: {error}") from None
        raise
