"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike

_LONGEST = 2000  # letters of a message: what it quotes may be as long as a file


class GossamerError(Exception):
    """Bad input or a failed environment, told in one line that names the file, tensor or option at fault.

    The command line prints it as it is and exits with 1; everything else that escapes is a bug.
    """

    def __str__(self) -> str:
        """Returns the line, whatever names, values and messages of others it quotes."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Returns a text as one line of letters that can be printed.

    Files and their names hold what they like: lines, sequences that move a terminal's cursor, halves of surrogate
    pairs, which nothing can write. White space becomes a blank, and what cannot be printed an escape.
    """
    cut = text[:_LONGEST]
    if not cut.isprintable():
        cut = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in " ".join(cut.split())
        )
    return cut if len(text) <= _LONGEST >= len(cut) else f"{cut[:_LONGEST]}…"


@contextmanager
def naming(path: str | PathLike[str], doing: str = "") -> Iterator[None]:
    """Has an error of the system, as of a full disk, be a line about a file.

    Args:
        path: The file, or a folder.
        doing: What the error is in the way of: "cannot write"; empty where that goes without saying.

    Raises:
        GossamerError: the system refuses what is done in the block.
    """
    try:
        yield
    except OSError as error:
        raise GossamerError(f"{path}: {doing}{': ' if doing else ''}{error.strerror or error}") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean …?" with the known words that begin so, or the one most like it; or an empty text."""
    words = list(known)
    begun = [other for other in words if word and other.startswith(word)]
    meant = begun[:3] or difflib.get_close_matches(word, words, 1)
    return f"; did you mean {' or '.join(meant)}?" if meant else ""
