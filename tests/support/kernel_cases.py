"""What tests of kernels share: what a name says, and weights to run them on."""

from __future__ import annotations

import reference
from gossamer import _core


def parse(name: str) -> tuple[str, str, str]:
    """(format, weight type, activation type) of a kernel's name."""
    format, op, type, activation = name.split("__", maxsplit=1)[0].split("_")
    assert op == "linear"
    return format, type, activation


def packed(
    format: str, type: str, group: int, shape: tuple[int, int], sparsity: float, pattern: tuple[int, int] = (2, 4)
) -> _core.Weight:
    """A random weight; the pattern is that of format "nm"."""
    values = reference.random_matrix(*shape, sparsity)
    if format != "nm":
        return _core.pack(values, format, type, group)
    return _core.pack(reference.prune_nm(values, *pattern), format, type, group, pattern)
