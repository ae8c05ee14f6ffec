"""What becomes of memory that a step frees."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's mallopt(3)
_KEPT = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
# What its thresholds grow to by themselves; they do so no more once they were set.
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}


@contextlib.contextmanager
def kept_blocks() -> Iterator[None]:
    """Has glibc keep large blocks that are freed within, and give them back behind; other libraries do as they do.

    A training step needs the same blocks again, and the system would clear every page of them anew: about a tenth of
    the time.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    for option, value in _KEPT.items():
        library.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
