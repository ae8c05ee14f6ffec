"""Memory of files that this process maps."""

from __future__ import annotations

from pathlib import Path

import pytest

SMAPS = Path("/proc/self/smaps")
needs_smaps = pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc")


def resident(path: Path) -> int:
    """Bytes of a file that is mapped once which lie in this process's memory."""
    return 1024 * int(SMAPS.read_text("utf-8").partition(f"{path}\n")[2].partition("Rss:")[2].split()[0])
