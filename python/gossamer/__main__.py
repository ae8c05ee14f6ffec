"""The command `gossamer`, also as `python -m gossamer`: quiet about Ctrl-C from the first import on."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130

# For how many ticks of the clock a thread of numpy's products waits for the next one before it sleeps, as a power of 2.
# By itself it takes a core from our own threads for a tenth of a second.
_PRODUCTS_WAIT = "16"


def main() -> int:
    """Runs one command with the process's own arguments; returns the exit code."""
    try:
        import signal

        # While modules are imported nothing is begun that would have to end well, and an exception would not always
        # arrive: callbacks drop it, and native modules make another of it.
        mine = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if mine:
            signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
        os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _PRODUCTS_WAIT)
        from .cli import main as run

        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:  # before and after that; what comes later the command itself answers
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
