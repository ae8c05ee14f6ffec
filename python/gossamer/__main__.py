"""The command `gossamer`, also as `python -m gossamer`: quiet about Ctrl-C from the first import on."""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def main() -> int:
    """Runs one command with the process's own arguments; returns the exit code."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:  # while modules are imported; later ones the command itself answers
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
