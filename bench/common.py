"""What every bench records beside its numbers: the machine, the commit, the versions; and where results go."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def facts() -> dict[str, Any]:
    """Returns the machine and the commit that a result belongs to."""
    import numpy as np

    import gossamer
    from gossamer import _core
    from gossamer.machine.roofline import processor

    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed": sorted(line[3:] for line in _git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": _core.default_threads(),
        "isa": _core.isa(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gossamer": gossamer.__version__,
        "compiler": _core.compiler(),
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Writes `{name}.json` into the results folder, facts first, and returns its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"facts": facts(), **result}, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return done.stdout.rstrip() if done.returncode == 0 else ""
