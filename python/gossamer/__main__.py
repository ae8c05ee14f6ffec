"""The command `gossamer`, also as `python -m gossamer`: quiet about Ctrl-C from the first import on."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130


def main() -> int:
    """Runs one command with the process's own arguments; returns the exit code."""
    try:
        import signal

        # While modules are imported nothing is begun that would have to end well, and an exception would not always
        # arrive: callbacks drop it, and native modules make another of it.
        mine = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if mine:
            signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
        from .cli import main as run

        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:  # before and after that; what comes later the command itself answers
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
