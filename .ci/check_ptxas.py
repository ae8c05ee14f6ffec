"""Reads what `ptxas -v` said in a build log and fails where a linear kernel spills registers or uses local memory.

    python .ci/check_ptxas.py build.log

Prints registers and shared memory of every kernel and architecture.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HOT = ("LinearKernel", "NonZerosKernel")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def is_hot(name: str) -> bool:
    """Whether a kernel is one that every weight goes through."""
    return any(kind in name for kind in HOT)


def read(log: str) -> list[tuple[str, str, tuple[int, int, int], int]]:
    """Returns (kernel, architecture, (stack, spill stores, spill loads), registers) for every kernel in a log."""
    kernels = []
    parts = ENTRY.split(log)[1:]
    for name, architecture, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        frame, used = FRAME.search(text), USED.search(text)
        if frame is None or used is None:
            raise SystemExit(f"check_ptxas: nothing about registers behind {name} for {architecture}")
        stack, stores, loads = map(int, frame.groups())
        kernels.append((name, architecture, (stack, stores, loads), int(used[1])))
    return kernels


def complaints(kernels: list[tuple[str, str, tuple[int, int, int], int]]) -> list[str]:
    """Returns a line for every hot kernel that keeps anything but in registers and shared memory."""
    return [
        f"{name} for {architecture}: {frame[0]} bytes stack, {frame[1]} + {frame[2]} bytes spilled"
        for name, architecture, frame, _ in kernels
        if is_hot(name) and any(frame)
    ]


def main() -> None:
    """Checks the log that the command line names."""
    kernels = read(Path(sys.argv[1]).read_text(encoding="utf-8"))
    hot = [kernel for kernel in kernels if is_hot(kernel[0])]
    if not hot:
        raise SystemExit(
            f"check_ptxas: no {HOT[0]} in {sys.argv[1]}; was the library built anew, with GOSSAMER_WERROR=ON?"
        )
    bad = complaints(kernels)
    for architecture in sorted({kernel[1] for kernel in hot}):
        registers = [kernel[3] for kernel in hot if kernel[1] == architecture]
        print(f"{architecture}: {len(registers)} linear kernels, {min(registers)} to {max(registers)} registers")
    if bad:
        raise SystemExit("\n".join(["linear kernels spill:", *bad]))


if __name__ == "__main__":
    main()
