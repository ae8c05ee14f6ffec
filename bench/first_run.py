"""How long a newcomer waits for the first answer: from an empty cache, download included.

    python bench/first_run.py

The command is the README's, in a process of its own, with a new GOSSAMER_HOME; the second answer is from the model that
the first run left there. The last row is what a program waits for that imports the package and loads that model: the
median of five processes. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write_result

QUESTION = "What is the capital of France?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder to leave the model in; must not exist yet")
    parser.add_argument("--name", default="first_run", help="of the result file; empty writes none")
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
    home = arguments.keep or Path(tempfile.mkdtemp())
    try:
        rows: list[dict[str, Any]] = [{"run": run, **_answer(home)} for run in ("first", "second")]
        rows.append({"run": "load", "seconds": statistics.median(_load(home) for _ in range(5))})
    finally:
        if not arguments.keep:
            shutil.rmtree(home)
    print(rows, file=sys.stderr, flush=True)
    if arguments.name:
        print(write_result(arguments.name, {"setting": {"question": QUESTION}, "rows": rows}))


def _answer(home: Path) -> dict[str, Any]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "gossamer", "generate", QUESTION]
    done = subprocess.run(command, env={**os.environ, "GOSSAMER_HOME": str(home)}, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    return {"seconds": round(time.perf_counter() - started, 1), "answer": done.stdout.decode().strip()}


def _load(home: Path) -> float:
    """Seconds from the first line of a program to a model that is ready."""
    code = "import time; t = time.perf_counter(); import gossamer; gossamer.load(); print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "GOSSAMER_HOME": str(home)}, capture_output=True, check=True)
    return round(float(done.stdout), 3)


if __name__ == "__main__":
    main()
