"""The walk through the blocks: each is pruned on the outputs of the already pruned ones before it.

A method that changes the weights that it keeps is aimed at the dense model: instead of W, it is given the W' that best
makes up, from the inputs behind pruned blocks, for what those blocks got wrong,

    W' = W + D G^-1,   G = sum x x^T,   D = sum e x^T,

where x is the input of the linear behind pruned blocks and e what its output lacks. For a linear inside the block that
is W (x_dense - x); for one that adds to the residual stream, what the stream itself lacks comes on top.

The next norm divides the stream by its size, so what is added to it matters by that measure: tokens count by the
inverse square of it. In most models the stream of the first token is a hundred times as large as that of others
(massive activations, Sun et al. 2024), and would be all that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..arch.spec import Branch, Group, Transformer
from ..checkpoints.lora import LowRank
from ..engine import Blocks
from ..errors import GossamerError
from .linalg import Mask, Matrix
from .low_rank import sparse_plus_low_rank
from .masks import Target
from .methods.method import Method
from .moments import Moments
from .store import Store

# Tokens in one native call: enough to keep the cores busy, few enough that a block's captured inputs stay small.
_CHUNK_TOKENS = 4096
# Tokens that an expert has to have seen for their moments to say more than magnitudes do.
_FEW_TOKENS = 32


def prune_blocks(
    blocks: Blocks,
    model: Transformer,
    windows: NDArray[np.int32],
    method: Method,
    targets: Mapping[str, Target],
    read: Callable[[str], Matrix],
    replace: Callable[[str, Matrix, LowRank | None], Matrix],
    progress: Callable[[int, int, str], None],
    rank: int = 0,
    store: Store | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Prunes every linear of every block in turn.

    Those of an expert are pruned on the tokens that were routed to it; where these are few, by magnitude.

    Args:
        blocks: The engine that holds the dense model, and the pruned one afterwards.
        model: Its description.
        windows: Calibration tokens, [windows, length]; each window is a sequence of its own.
        method: The method.
        targets: The zeros to make, by the canonical name of the matrix.
        read: Gives the weight of a canonical name such as "layers.3.q".
        replace: Puts the pruned weight of that name, and its low-rank branch, into `blocks`; returns what it is now.
        progress: Called with (blocks done, blocks, what) before each block, and after the last.
        rank: Of the low-rank branches; 0 makes none.
        store: Where hidden states are kept, and how many blocks are done already; None is memory.
        done: Called with each block that is done.

    Returns:
        The tokens that came to each matrix, by canonical name, where they were so few.

    Raises:
        GossamerError: a weight or an input is NaN or infinite, or the moments of a layer's inputs have no inverse.
    """
    length = windows.shape[1]
    per_chunk = max(1, _CHUNK_TOKENS // length)
    parts = np.split(windows, range(per_chunk, len(windows), per_chunk))
    store = store or Store()

    def embedded(kind: str, index: int) -> Matrix:
        """The states of a chunk that the first block to be pruned begins with."""
        name = f"{store.blocks}.{kind}-{index}"
        found = store.array(name)
        return store.keep(name, blocks.embed(parts[index].reshape(-1), length)) if found is None else found

    pruned = [embedded("pruned", index) for index in range(len(parts))]
    dense = [embedded("dense", index) for index in range(len(parts))] if method.updates else pruned

    few = store.notes

    def prune_group(group: Group, moments: Moments) -> Matrix:
        """Prunes the linears of a group; returns by how much the last of them changed."""
        seen = moments.tokens
        scarce = group.column is not None and seen < _FEW_TOKENS
        if scarce:  # as if all inputs were alike
            moments = Moments()
            moments.add_product(np.eye(model.linears[f"layers.{layer}.{group.linears[0]}"].cols))
        for linear in group.linears:
            name = f"layers.{layer}.{linear}"
            weight = read(name)
            moments.check(name)
            if scarce:
                few[name] = seen
            try:
                branch = None
                if method.prepare and not rank:
                    prepared = moments.prepared(method.prepare)
                    values = prepared(weight, targets[name], weight != 0, moments.lacking(weight))
                else:
                    aimed = moments.aim(weight) if method.updates else weight
                    solved = (aimed, moments.gram, targets[name], weight != 0)
                    if rank:
                        values, branch = sparse_plus_low_rank(*solved, method.solve, rank)
                    else:
                        values = method.solve(*solved)
                stored = replace(name, values, branch)
            except GossamerError as error:
                raise GossamerError(f"{name}: {error}") from None
        return stored - weight

    for layer, block in enumerate(model.blocks):
        progress(layer, model.layers, "pruning blocks")
        if layer < store.blocks:
            continue
        # With the whole block still dense, behind dense and behind pruned blocks.
        branches = {group: branch for branch in block.branches for group in branch.mixer.groups}
        last = block.branches[-1]
        finals = [group for group in last.mixer.groups if group.joins]
        inner = {group: Moments() for group in block.groups if group not in finals}
        routings = [branch.mixer.routed for branch in block.branches if branch.mixer.routed]
        names = [group.linears[0] for group in inner] + routings
        for index, (hidden_dense, hidden) in enumerate(zip(dense, pruned, strict=True)):
            inputs = blocks.block_inputs(layer, hidden, names, length)
            wanted: dict[str, Matrix] = {}
            if method.updates:
                ahead, wanted = blocks.forward_block(layer, hidden_dense, names, length)
                dense[index] = store.keep(f"{layer + 1}.dense-{index}", ahead)
            scale = _token_scales(hidden)
            for group, moments in inner.items():
                branch, x, aim = branches[group], inputs[group.linears[0]], wanted.get(group.linears[0])
                way = _Way(group, branch, inputs)
                way_dense = way if aim is None else _Way(group, branch, wanted)
                lacks = None
                if group.joins:
                    x *= way.factors(scale)
                    if aim is not None:
                        aim *= way_dense.factors(scale)
                        lacks = (hidden_dense - hidden) * scale if _adds(branch) else None
                moments.add(x)
                if aim is not None:
                    x, aim, lacks = way.common(way_dense, x, aim, lacks)
                    aim -= x
                    moments.add_drift(x, aim, lacks)
        for group, moments in inner.items():
            prune_group(group, moments)

        # With all of the block pruned but the linears that end it, which so make up for the others, too, and the later
        # of them for the earlier.
        names = [group.linears[0] for group in finals] + ([last.mixer.routed] if last.mixer.routed else [])
        entered, captured = list(pruned), []
        for index, hidden in enumerate(pruned):
            ahead, inputs = blocks.forward_block(layer, hidden, names, length)
            pruned[index] = store.keep(f"{layer}.ahead-{index}", ahead)
            captured.append({name: store.keep(f"{layer}.{name}-{index}", x) for name, x in inputs.items()})
        for group in finals:
            moments = Moments()
            for index, inputs in enumerate(captured):
                way, scale = _Way(group, last, inputs), _token_scales(pruned[index])
                x = inputs[group.linears[0]] * way.factors(scale)
                moments.add(x)
                if method.updates and _adds(last):
                    moments.add_drift(x, None, way.rows((dense[index] - pruned[index]) * scale))
            change = prune_group(group, moments)
            if _adds(last):
                for index, inputs in enumerate(captured):
                    ahead = np.array(pruned[index])
                    _Way(group, last, inputs).add(ahead, inputs[group.linears[0]] @ change.T)
                    pruned[index] = store.keep(f"{layer}.ahead-{index}", ahead)
        if not _adds(last):
            pruned = [blocks.forward_block(layer, hidden, (), length)[0] for hidden in entered]
        pruned = [store.keep(f"{layer + 1}.pruned-{index}", hidden) for index, hidden in enumerate(pruned)]
        store.done(layer)
        done(layer)
    progress(model.layers, model.layers, "pruning blocks")
    return few


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
