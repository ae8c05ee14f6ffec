"""Zeros, bits and rank as one search: what each matrix becomes under a budget, such that predictions move least.

What three changes do to the predictions is measured, a part of a block at a time: zeros at two sparsities, rounding to
int4, and zeros with a low-rank branch beside them. What others would do follows from these: zeros cost a power of the
sparsity, the same for all, the median of what both measurements say; rounding costs what it does in a dense matrix,
times what is left of it; a branch takes away the same share at any sparsity; and what a model loses is the sum over its
matrices. Under one budget that sum is smallest where one more byte saves the same everywhere (Everett 1963), which a
bisection finds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from ..errors import GossamerError
from ..formats import expected_shape, stored_bytes
from ..progress import Progress
from .allocation import Put, Size
from .linalg import Matrix
from .low_rank import low_rank
from .masks import Form, Target

if TYPE_CHECKING:
    from ..arch.spec import Linear
    from .sensitivity import Probe

TYPES = ("int8", "int4")
"""Types that a matrix may have: what is not rounded while it is pruned is taken to be packed as int8."""

_MEASURED = (0.5, 0.75)  # the sparsities that are measured
_POWERS = (3.0, 9.0)  # between which the power of zeros lies: the smallest squares alone add up to the third
_ZEROS = (0.0, *(percent / 100 for percent in range(20, 86, 2)))  # those to choose from
_LEAST = 1e-12  # nats: what costs nothing costs so much, so that the fewer zeros of equals are taken


@dataclass(frozen=True)
class Costs:
    """What is lost where one matrix alone is changed, in nats a token.

    Attributes:
        zeros: With nothing but zeros, as the power law has it.
        power: Of the sparsity that zeros cost.
        int4: Rounded, without zeros.
        branch: The share of what zeros cost that a low-rank branch leaves.
    """

    zeros: float
    power: float
    int4: float
    branch: float = 1.0

    def of(self, form: Form) -> float:
        """What a form of the matrix would lose."""
        sparsity = form.target.sparsity
        lost = self.zeros * math.pow(sparsity, self.power) * (self.branch if form.rank else 1.0)
        return lost + (self.int4 * (1 - sparsity) if form.weights == "int4" else 0.0)


def measured(
    probe: Probe, linears: Mapping[str, Linear], group: int, rank: int, put: Put, progress: Progress
) -> dict[str, Costs]:
    """Measures what matrices lose.

    Args:
        probe: The dense model on a few tokens.
        linears: The matrices, by canonical name.
        group: Inputs a scale.
        rank: Of a branch; 0 measures none.
        put: Puts a weight of a canonical name into the engine; the dense ones are there again in the end.
        progress: Called with (done, parts, what).

    Raises:
        GossamerError: predictions are NaN or infinite.
    """
    from .. import _core

    pruned = [probe.pruned(Target(sparsity)) for sparsity in _MEASURED]

    def rounded(_: str, weight: Matrix) -> Matrix:
        values: Matrix = _core.pack(weight, "dense", "int4", group).unpack()
        return values

    def with_branch(name: str, weight: Matrix) -> Matrix:
        sparse = pruned[1](name, weight)
        branch = low_rank(weight - sparse, np.diag(probe.squares[name]), rank)
        values: Matrix = sparse + branch.u @ branch.v
        return values

    changes = [*pruned, rounded, *([with_branch] if rank else [])]
    first, second, int4, *branch = probe.moved(changes, put, progress)
    low, high = _MEASURED
    pairs = {name: (max(first[name], _LEAST), max(second[name], _LEAST)) for name in linears}
    least, most = _POWERS
    rises = [math.log(two / one) / math.log(high / low) for one, two in pairs.values()]
    power = min(max(statistics.median(rises), least), most)
    costs = {}
    for name, (one, two) in pairs.items():
        zeros = math.sqrt(one * two) / math.pow(low * high, power / 2)  # as near to one measurement as to the other
        left = min(max(branch[0][name], _LEAST) / two, 1.0) if branch else 1.0
        costs[name] = Costs(zeros, power, int4[name], left)
    return costs


def bits(linear: Linear, form: Form, group: int) -> float:
    """Returns what a packed matrix takes, in bits for each of its entries.

    Scales and a branch count; of the formats, the smallest does.

    Args:
        linear: The matrix.
        form: What it becomes; "stored" counts as int8.
        group: Inputs a scale; 0 is a whole row.
    """
    rows, cols = linear.rows, linear.cols
    entries = rows * cols
    type_ = "int4" if form.weights == "int4" else "int8"
    shape = expected_shape(rows, cols, entries - form.target.zeros(entries))
    size = min(stored_bytes(shape, format_, type_) for format_ in ("dense", "bitmap", "csr"))
    size += 2 * rows * math.ceil(cols / (group or cols))
    for across, along in ((rows, form.rank), (form.rank, cols)) if form.rank else ():
        factor = expected_shape(across, along, across * along)
        size += stored_bytes(factor, "dense", "int8") + 2 * across * math.ceil(along / (group or along))
    return 8 * size / entries


def search(
    budget: float,
    linears: Mapping[str, Linear],
    sizes: Mapping[str, Size],
    costs: Mapping[str, Costs],
    *,
    types: tuple[str, ...] = TYPES,
    group: int = 64,
    rank: int = 0,
) -> dict[str, Form]:
    """Chooses zeros, type and rank of every matrix, such that the sum of what they lose is smallest.

    Args:
        budget: Bits a weight that all of them together may take, as `bits` counts them.
        linears: The matrices, by canonical name.
        sizes: What they have before.
        costs: What was measured.
        types: Those to choose from.
        group: Inputs a scale; 0 is a whole row.
        rank: Of a branch that a matrix may have; 0 for none.

    Returns:
        A form for each name; "stored" is what is to be packed as int8.

    Raises:
        GossamerError: the budget is less than all can do with, or more than they need.
    """
    weigh = cache(partial(bits, group=group))
    options: dict[str, list[tuple[float, float, Form]]] = {}  # bytes, cost, form
    for name, linear in linears.items():
        entries, there = sizes[name].entries, sizes[name].zeros / sizes[name].entries
        zeros = sorted({there, *(one for one in _ZEROS if one > there)})
        ranks = (0, rank) if 0 < rank <= min(linear.rows, linear.cols) else (0,)
        forms = [
            Form(Target(sparsity), "int4" if type_ == "int4" else Form.weights, branch)
            for sparsity, type_, branch in product(zeros, types, ranks)
        ]
        options[name] = [(weigh(linear, form) * entries / 8, costs[name].of(form), form) for form in forms]

    def chosen(price: float) -> dict[str, tuple[float, float, Form]]:
        return {name: min(each, key=lambda one: (one[1] + price * one[0], one[0])) for name, each in options.items()}

    entries = sum(size.entries for size in sizes.values())
    most = budget * entries / 8

    def taken(found: Mapping[str, tuple[float, float, Form]]) -> float:
        return sum(size for size, _, _ in found.values())

    least = sum(min(size for size, _, _ in each) for each in options.values())
    if least > most:
        raise GossamerError(f"{budget:g} bits a weight are too few: {8 * least / entries:.2f} are the least here")
    whole = sum(min(each, key=lambda one: (one[1], one[0]))[0] for each in options.values())
    if most >= whole and "int8" in types:
        raise GossamerError(
            f"{budget:g} bits a weight are enough for all as int8: {8 * whole / entries:.2f} are the most"
        )
    # Prices are of a byte, in nats; between the two lie all that decide between forms.
    low, high = 1e-24, 1e6
    for _ in range(120):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if taken(chosen(middle)) <= most else (middle, high)
    found = chosen(high)
    left = most - taken(found)
    # What is left goes to matrices that a step of their own fits, those first that gain most by a byte.
    steps = [
        ((found[name][1] - cost) / (size - found[name][0]), name, (size, cost, form))
        for name, each in options.items()
        for size, cost, form in each
        if size > found[name][0] and cost < found[name][1]
    ]
    for _, name, step in sorted(steps, key=lambda one: one[0], reverse=True):
        if 0 < step[0] - found[name][0] <= left and step[1] < found[name][1]:
            left -= step[0] - found[name][0]
            found[name] = step
    return {name: form for name, (_, _, form) in found.items()}
