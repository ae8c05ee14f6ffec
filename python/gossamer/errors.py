"""The one exception that means "the user can fix this"."""

from __future__ import annotations


class GossamerError(Exception):
    """Bad input or a failed environment, told in one line that names the file, tensor or option at fault.

    The command line prints it as it is and exits with 1; everything else that escapes is a bug.
    """
