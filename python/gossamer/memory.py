"""How much memory is free."""

from __future__ import annotations

import contextlib
from pathlib import Path


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
