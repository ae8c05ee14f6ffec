"""Where the sources stand, and the hash of those that the native module is built from."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def source_hash(root: Path) -> str:
    """The hash of everything that the native module is built from, as cmake/source_hash.cmake computes it."""
    files = [path for end in ("h", "inc", "cc", "cu") for path in (root / "csrc").rglob(f"*.{end}")]
    files += [*(root / "cmake").rglob("*.cmake"), root / "CMakeLists.txt"]
    names = sorted(path.relative_to(root).as_posix() for path in files)
    lines = (f"{hashlib.sha256((root / name).read_bytes()).hexdigest()} {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
