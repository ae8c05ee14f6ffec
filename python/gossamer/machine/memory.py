"""How much memory is free, and weights laid out in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .. import _core

CACHE_LINE = 64


def available_memory() -> int | None:
    """Returns the bytes that may be taken without swapping, within the control group's limit.

    None where the system does not tell.
    """
    amounts = []
    with contextlib.suppress(OSError, ValueError):
        fields = Path("/proc/meminfo").read_text(encoding="ascii").split()
        amounts.append(int(fields[fields.index("MemAvailable:") + 1]) << 10)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limit, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        amounts.append(max(int(limit) - int(used), 0))
    return min(amounts, default=None)


def copies(weight: _core.Weight, count: int) -> Iterator[_core.Weight]:
    """Yields copies of a weight, each in memory of its own.

    They lie behind one another in one block, streams at cache lines, as in a packed file: a load across two lines would
    cost twice.
    """
    from .. import _core

    streams = weight.streams()
    memory = np.empty(count * sum(aligned(stream.nbytes) for stream in streams.values()) + CACHE_LINE, np.uint8)
    at = -memory.ctypes.data % CACHE_LINE
    for _ in range(count):
        mine = {}
        for name, stream in streams.items():
            mine[name] = memory[at : at + stream.nbytes].view(stream.dtype)
            mine[name][:] = stream
            at += aligned(stream.nbytes)
        yield _core.weight_from_streams(
            weight.format, weight.type, weight.rows, weight.cols, weight.group, weight.pattern, mine
        )


def aligned(size: int) -> int:
    """Returns a number of bytes rounded up to whole cache lines."""
    return -(-size // CACHE_LINE) * CACHE_LINE
