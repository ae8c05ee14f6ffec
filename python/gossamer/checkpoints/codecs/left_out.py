"""Scales of what gossamer rounds by itself, or not at all: activations and cached keys and values. They are told."""

from __future__ import annotations

import re

from .claims import Claims
from .tensor import Tensors

_KINDS = {
    "activations": re.compile(r"\.(input_scale|input_zero_point|input_global_scale|output_scale|activation_scale)$"),
    "cached keys and values": re.compile(r"\.([kvq]_scale|kv_scale|[kv]_proj\.output_scale|[kvq]_zero_point)$"),
}
_MOST = 1 << 16  # values that such a tensor has


def decode(tensors: Tensors, claims: Claims) -> None:
    """Takes out scales that nothing is done with, and notes it."""
    for what, pattern in reversed(_KINDS.items()):
        names = [name for name, tensor in tensors.items() if pattern.search(name) and _small(tensor.shape)]
        for name in names:
            del tensors[name]
        if names:
            claims.notes.append(
                f"{claims.path.parent}: {names[0]} ({len(names)} such tensors) is left out: {what} are not rounded "
                "with scales that a checkpoint brings"
            )


def _small(shape: tuple[int, ...]) -> bool:
    size = 1
    for length in shape:
        size *= length
    return size <= _MOST
