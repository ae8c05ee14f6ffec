"""Linears that are a sum of several matrices, y = W_0 x + W_1 x + …, as Sparse-IFT (Thangarasa et al. 2023) has them.

A list of linears called `branches` takes the place of one: NAME.branches.0.weight, NAME.branches.1.weight, …
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import GossamerError
from .codecs import Tensors

_BRANCH = re.compile(r"(.+)\.branches\.(\d{1,4})\.weight")


def delta_name(name: str, number: int) -> str:
    """Returns what a matrix that is added to another is called in a model: the other's canonical name, and a number."""
    return f"{name}.delta_{number}"


def deltas_of(name: str, names: Collection[str]) -> list[str]:
    """Returns those of some names that are matrices which are added to one."""
    found: list[str] = []
    while (delta := delta_name(name, len(found) + 1)) in names:
        found.append(delta)
    return found


def take_branches(tensors: Tensors) -> dict[str, list[str]]:
    """Puts the first branch in the place of a linear's weight; the others keep their names.

    Returns:
        The names of the others, by that of the weight; none where no linear has branches.

    Raises:
        GossamerError: a branch is missing, or there is a weight beside them.
    """
    found: dict[str, set[int]] = {}
    for name in tensors:
        if match := _BRANCH.fullmatch(name):
            found.setdefault(match[1], set()).add(int(match[2]))
    parallel = {}
    for module, numbers in found.items():
        names = [f"{module}.branches.{number}.weight" for number in range(len(numbers))]
        if lacking := next((name for name in names if name not in tensors), None):
            raise GossamerError(f"{tensors[f'{module}.branches.{max(numbers)}.weight'].path}: {lacking} is missing")
        tensors.put(f"{module}.weight", tensors.pop(names[0]))
        parallel[f"{module}.weight"] = names[1:]
    return parallel
