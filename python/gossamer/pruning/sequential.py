"""The walk through the blocks: each is pruned on the outputs of the already pruned ones before it.

A method that changes the weights that it keeps is aimed at the dense model: instead of W, it is given the W' that best
makes up, from the inputs behind pruned blocks, for what those blocks got wrong,

    W' = W + D G^-1,   G = sum x x^T,   D = sum e x^T,

where x is the input of the linear behind pruned blocks and e what its output lacks. For a linear inside the block that
is W (x_dense - x); for one that adds to the residual stream, what the stream itself lacks comes on top. Where blocks
read an encoder, the pruned ones read the pruned encoder's states, the dense ones the dense encoder's.

The next norm divides the stream by its size, so what is added to it matters by that measure: tokens count by the
inverse square of it. In most models the stream of the first token is a hundred times as large as that of others
(massive activations, Sun et al. 2024), and would be all that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from ..arch.spec import Branch, Group, Transformer
from ..checkpoints.lora import LowRank
from ..engine import Blocks
from ..errors import GossamerError
from .linalg import Mask, Matrix
from .low_rank import sparse_plus_low_rank
from .masks import Form
from .methods.method import Method
from .moments import Moments
from .store import Store
from .walk import Place, Texts, Walk

# Tokens that an expert has to have seen for their moments to say more than magnitudes do.
_FEW_TOKENS = 32


def prune_blocks(
    blocks: Blocks,
    model: Transformer,
    texts: Sequence[Texts],
    methods: Mapping[str, Method],
    forms: Mapping[str, Form],
    read: Callable[[str], Matrix],
    replace: Callable[[str, Matrix, LowRank | None], Matrix],
    progress: Callable[[int, int, str], None],
    store: Store | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Prunes every linear of every block in turn.

    Those of an expert are pruned on the tokens that were routed to it; where these are few, by magnitude.

    Args:
        blocks: The engine that holds the dense model, and the pruned one afterwards.
        model: Its description.
        texts: To calibrate on, as many as are run at once in each.
        methods: The method, by what `Form.weights` says.
        forms: What to make, by the canonical name of the matrix.
        read: Gives the weight of a canonical name such as "layers.3.q".
        replace: Puts the pruned weight of that name, and its low-rank branch, into `blocks`; returns what it is now.
        progress: Called with (blocks done, blocks, what) before each block, and after the last.
        store: Where hidden states are kept, and how many blocks are done already; None is memory.
        done: Called with each block that is done.

    Returns:
        The tokens that came to each matrix, by canonical name, where they were so few.

    Raises:
        GossamerError: a weight or an input is NaN or infinite, or the moments of a layer's inputs have no inverse.
    """
    store = store or Store()
    run = _Run(Walk(blocks, model), model, texts, methods, forms, read, replace, store)
    total = len(run.walk.places)
    for place in run.walk.places:
        progress(place.number, total, "pruning blocks")
        if place.number < store.blocks:
            continue
        run.prune(place)
        store.done(place.number)
        done(place.number)
    progress(total, total, "pruning blocks")
    return store.notes


class _Run:
    """The walk of `prune_blocks`, and the states [tokens, hidden] of each of the texts before the block that it is at.

    Attributes:
        walk: The way through the blocks.
    """

    def __init__(
        self,
        walk: Walk,
        model: Transformer,
        texts: Sequence[Texts],
        methods: Mapping[str, Method],
        forms: Mapping[str, Form],
        read: Callable[[str], Matrix],
        replace: Callable[[str, Matrix, LowRank | None], Matrix],
        store: Store,
    ) -> None:
        """Takes what `prune_blocks` does; begins with states that are kept, or those of the first block."""
        self.walk = walk
        self._model, self._texts, self._methods, self._forms = model, texts, methods, forms
        self._read, self._replace, self._store = read, replace, store
        self._updates = any(methods[form.weights].updates for form in forms.values())
        kinds = ("pruned", "dense") if self._updates else ("pruned",)
        self._states: dict[str, list[Matrix]] = {}
        self._memories: dict[str, list[Matrix | None]] = {kind: [None] * len(texts) for kind in kinds}
        for kind in kinds:
            names = [f"{store.blocks}.{kind}-{index}" for index in range(len(texts))]
            self._states[kind] = [
                self._held(name, partial(walk.enter, each)) for name, each in zip(names, texts, strict=True)
            ]
            if walk.turn is not None and store.blocks >= walk.turn:
                self._memories[kind] = [store.array(f"memory.{kind}-{index}") for index in range(len(texts))]
        self._pruned = self._states["pruned"]
        self._dense = self._states["dense"] if self._updates else self._pruned

    def _held(self, name: str, make: Callable[[], Matrix]) -> Matrix:
        """What the store has, or what is made for it."""
        found = self._store.array(name)
        return self._store.keep(name, make()) if found is None else found

    def prune(self, place: Place) -> None:
        """Prunes the linears of the next block, and comes to the one behind it."""
        last = place.block.branches[-1]
        finals = [group for group in last.mixer.groups if group.joins]
        self._prune_inner(place, [group for group in place.block.groups if group not in finals])
        self._prune_last(place, finals)
        behind = place.number + 1
        if behind == self.walk.turn:
            self._cross(behind)
        else:
            self._pruned[:] = [
                self._store.keep(f"{behind}.pruned-{index}", hidden) for index, hidden in enumerate(self._pruned)
            ]

    def _cross(self, number: int) -> None:
        """Has the blocks from a number on, which are behind the encoder, begin with texts that read its states."""
        for kind, states in self._states.items():
            for index, part in enumerate(self._texts):
                memory, begun = self.walk.cross(part, states[index])
                self._memories[kind][index] = self._store.keep(f"memory.{kind}-{index}", memory)
                states[index] = self._store.keep(f"{number}.{kind}-{index}", begun)

    def _forward(
        self, kind: str, place: Place, index: int, hidden: Matrix, names: Sequence[str] = ()
    ) -> tuple[Matrix, dict[str, Matrix]]:
        return self.walk.forward(place, self._texts[index], hidden, self._memories[kind][index], names)

    def _prune_inner(self, place: Place, groups: Sequence[Group]) -> None:
        """Prunes linears with the whole of their block still dense, behind dense and behind pruned blocks."""
        branches = {group: branch for branch in place.block.branches for group in branch.mixer.groups}
        inner = {group: Moments() for group in groups}
        routings = [branch.mixer.routed for branch in place.block.branches if branch.mixer.routed]
        names = [group.linears[0] for group in inner] + routings
        for index, (dense, pruned) in enumerate(zip(self._dense, self._pruned, strict=True)):
            inputs = self.walk.inputs(place, self._texts[index], pruned, self._memories["pruned"][index], names)
            wanted: dict[str, Matrix] = {}
            if self._updates:
                ahead, wanted = self._forward("dense", place, index, dense, names)
                self._dense[index] = self._store.keep(f"{place.number + 1}.dense-{index}", ahead)
            scale = _token_scales(pruned)
            for group, moments in inner.items():
                _observe(moments, group, branches[group], (inputs, wanted), (pruned, dense), scale)
        for group in tuple(inner):  # moments, and what is made of them, go with their group
            self._prune_group(place, group, inner.pop(group))

    def _prune_last(self, place: Place, groups: Sequence[Group]) -> None:
        """Prunes the linears that end a block, with all of it pruned but them.

        So they make up for the others, too, and the later of them for the earlier.
        """
        number, last = place.number, place.block.branches[-1]
        adds = _adds(last) and not place.block.scalar
        names = [group.linears[0] for group in groups] + ([last.mixer.routed] if last.mixer.routed else [])
        pruned, keep = self._pruned, self._store.keep
        entered, captured = list(pruned), []
        for index, hidden in enumerate(pruned):
            ahead, inputs = self._forward("pruned", place, index, hidden, names)
            pruned[index] = keep(f"{number}.ahead-{index}", ahead)
            captured.append({name: keep(f"{number}.{name}-{index}", x) for name, x in inputs.items()})
        for group in groups:
            moments = Moments()
            for index, inputs in enumerate(captured):
                way, scale = _Way(group, last, inputs), _token_scales(pruned[index])
                x = inputs[group.linears[0]] * way.factors(scale)
                moments.add(x)
                if self._updates and adds:
                    moments.add_drift(x, None, way.rows((self._dense[index] - pruned[index]) * scale))
            change = self._prune_group(place, group, moments)
            if adds:
                for index, inputs in enumerate(captured):
                    ahead = np.array(pruned[index])
                    _Way(group, last, inputs).add(ahead, inputs[group.linears[0]] @ change.T)
                    pruned[index] = keep(f"{number}.ahead-{index}", ahead)
        if not adds:
            for index, hidden in enumerate(entered):
                pruned[index] = self._forward("pruned", place, index, hidden)[0]

    def _prune_group(self, place: Place, group: Group, moments: Moments) -> Matrix:
        """Prunes the linears of a group; returns by how much the last of them changed."""
        names = [f"{place.prefix}{linear}" for linear in group.linears]
        if group.column is not None and moments.tokens < _FEW_TOKENS:
            self._store.notes.update(dict.fromkeys(names, moments.tokens))
            moments = Moments()  # as if all inputs were alike
            moments.add_product(np.eye(self._model.linears[names[0]].cols))
        name = names[0]
        moments.check(name)
        weights = [self._read(name) for name in names]
        try:
            for name, weight in zip(names, weights, strict=True):
                form = self._forms[name]
                values, branch = _pruned(weight, moments, form, self._methods[form.weights])
                stored = self._replace(name, values, branch)
        except GossamerError as error:
            raise GossamerError(f"{name}: {error}") from None
        return stored - weight


def _pruned(weight: Matrix, moments: Moments, form: Form, method: Method) -> tuple[Matrix, LowRank | None]:
    """Returns what a matrix becomes, and its low-rank branch."""
    present = weight != 0
    if method.prepare and not form.rank:
        prepared = moments.prepared(method.prepare)
        return prepared(weight, form.target, present, moments.lacking(weight)), None
    aim = moments.aim(weight) if method.updates else weight
    if form.rank:
        return sparse_plus_low_rank(aim, moments.gram, form.target, present, method.solve, form.rank)
    return method.solve(aim, moments.gram, form.target, present), None


def _observe(
    moments: Moments,
    group: Group,
    branch: Branch,
    captured: tuple[Mapping[str, Matrix], Mapping[str, Matrix]],
    states: tuple[Matrix, Matrix],
    scale: Matrix,
) -> None:
    """Adds a chunk of what a group of linears reads, and of what its outputs lack, to its moments.

    Args:
        moments: Of the group.
        group: The group.
        branch: That it is of.
        captured: Of the block behind pruned blocks and behind dense ones; the latter may be empty. They change.
        states: That the block begins with, [tokens, hidden], behind pruned blocks and behind dense ones.
        scale: Of tokens that join the stream, [tokens, 1].
    """
    (inputs, wanted), (pruned, dense) = captured, states
    x, aim = inputs[group.linears[0]], wanted.get(group.linears[0])
    way = _Way(group, branch, inputs)
    way_dense = way if aim is None else _Way(group, branch, wanted)
    lacks = None
    if group.joins:
        x *= way.factors(scale)
        if aim is not None:
            aim *= way_dense.factors(scale)
            lacks = (dense - pruned) * scale if _adds(branch) else None
    moments.add(x)
    if aim is not None:
        x, aim, lacks = way.common(way_dense, x, aim, lacks)
        aim -= x
        moments.add_drift(x, aim, lacks)


def _adds(branch: Branch) -> bool:
    """Whether what a branch gives is added to the stream as it is, up to a factor."""
    return branch.behind is None and branch.after_sum is None


class _Way:
    """The tokens whose inputs a group of linears reads, and what its outputs count.

    Args:
        group: The group.
        branch: That it is of.
        inputs: What was captured of the block, its routing with it.
    """

    def __init__(self, group: Group, branch: Branch, inputs: Mapping[str, Matrix]) -> None:
        self._scale = np.float32(branch.scale)
        self._here: Mask | None = None  # None: all of them
        self._weights: Matrix | None = None
        if group.column is not None:
            weights = inputs[branch.mixer.routed][:, group.column]
            self._here = weights >= 0
            self._weights = weights[self._here, None]

    def rows(self, values: Matrix) -> Matrix:
        """Returns those of its tokens, of rows of all."""
        return values if self._here is None else values[self._here]

    def factors(self, scale: Matrix) -> Matrix:
        """Returns what the stream makes of its outputs, [tokens, 1], where each token counts by a scale [all, 1]."""
        found = self.rows(scale)
        if self._weights is not None:
            found = found * self._weights
        return found if self._scale == 1 else found * self._scale

    def add(self, stream: Matrix, outputs: Matrix) -> None:
        """Adds outputs [tokens, hidden] to a stream, [all, hidden]."""
        if self._scale != 1:
            outputs *= self._scale
        if self._here is None or self._weights is None:
            stream += outputs
        else:
            stream[self._here] += outputs * self._weights

    def common(
        self, other: _Way, mine: Matrix, theirs: Matrix, rows: Matrix | None
    ) -> tuple[Matrix, Matrix, Matrix | None]:
        """Returns of its rows, of another's and of all, those of tokens that both have: others cannot be compared."""
        if self._here is None or other._here is None:
            return mine, theirs, rows
        both = self._here & other._here
        return mine[both[self._here]], theirs[both[other._here]], None if rows is None else rows[both]


def _token_scales(hidden: Matrix) -> Matrix:
    """Returns what the next norm multiplies each token with, up to its weight: [tokens, 1] for [tokens, hidden]."""
    sizes = np.sqrt(np.square(hidden).mean(axis=1, keepdims=True))
    return np.asarray(np.divide(1, sizes, out=np.zeros_like(sizes), where=sizes > 0), dtype=np.float32)
