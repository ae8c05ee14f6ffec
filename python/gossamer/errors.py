"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GossamerError(Exception):
    """Bad input or a failed environment, told in one line that names the file, tensor or option at fault.

    The command line prints it as it is and exits with 1; everything else that escapes is a bug.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean …?" with the known words that begin so, or the one most like it; or an empty text."""
    words = list(known)
    begun = [other for other in words if word and other.startswith(word)]
    meant = begun[:3] or difflib.get_close_matches(word, words, 1)
    return f"; did you mean {' or '.join(meant)}?" if meant else ""
