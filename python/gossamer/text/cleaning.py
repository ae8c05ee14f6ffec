"""Blanks before punctuation, which some tokenizers put there and their settings have taken away."""

from __future__ import annotations

import re

# What stands behind a blank that goes; of one also the blank behind it. In this order.
_CLOSE = (".", "?", "!", ",", "' ", "n't", "'m", "'s", "'ve", "'re")
# Where a text can be cut so that its parts are cleaned as the whole is: at a blank behind a word that is no part of
# what is looked for, " ' " and what is left of "n ' t" among it.
_CUT = re.compile(r"(?<![ '])(?<! n) ")


def clean(text: str) -> str:
    """Returns a text without the blanks that `transformers` takes away for `clean_up_tokenization_spaces`."""
    for close in _CLOSE:
        text = text.replace(f" {close}", close.rstrip())
    return text


class Cleaner:
    """Cleans a text that comes in pieces, a word late."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str, last: bool = False) -> str:
        """Takes a piece, and returns what is final now: everything with the last one."""
        text = self._held + piece
        cut = len(text) if last else max((match.start() for match in _CUT.finditer(text)), default=0)
        self._held = text[cut:]
        return clean(text[:cut])
