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

from ..arch.spec import Group, Transformer
from ..checkpoints.lora import LowRank
from ..engine import Blocks
from ..errors import GossamerError
from .linalg import Matrix
from .low_rank import sparse_plus_low_rank
from .masks import Target
from .methods.method import Method
from .moments import Moments

# Tokens in one native call: enough to keep the cores busy, few enough that a block's captured inputs stay small.
_CHUNK_TOKENS = 4096


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
) -> None:
    """Prunes every linear of every block in turn.

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

    Raises:
        GossamerError: a weight or an input is NaN or infinite, or the moments of a layer's inputs have no inverse.
    """
    length = windows.shape[1]
    per_chunk = max(1, _CHUNK_TOKENS // length)
    parts = np.split(windows, range(per_chunk, len(windows), per_chunk))
    pruned = [blocks.embed(part.reshape(-1), length) for part in parts]
    dense = list(pruned)

    def prune_group(group: Group, moments: Moments) -> Matrix:
        """Prunes the linears of a group; returns by how much the last of them changed."""
        for linear in group.linears:
            name = f"layers.{layer}.{linear}"
            weight = read(name)
            moments.check(name)
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
        # With the whole block still dense, behind dense and behind pruned blocks.
        *others, final = block.groups
        inner = {group: Moments() for group in others}
        firsts = [group.linears[0] for group in others]
        for index, (hidden_dense, hidden) in enumerate(zip(dense, pruned, strict=True)):
            inputs = blocks.block_inputs(layer, hidden, firsts, length)
            wanted: dict[str, Matrix] = {}
            if method.updates:
                dense[index], wanted = blocks.forward_block(layer, hidden_dense, firsts, length)
            scale = _token_scales(hidden)
            for group, moments in inner.items():
                x, aim = inputs[group.linears[0]], wanted.get(group.linears[0])
                lacks = None
                if group.joins:
                    x *= scale
                    if aim is not None:
                        aim *= scale
                        lacks = (hidden_dense - hidden) * scale
                moments.add(x)
                if aim is not None:
                    aim -= x
                    moments.add_drift(x, aim, lacks)
        for group, moments in inner.items():
            prune_group(group, moments)

        # With all of the block pruned but its last linear, which so makes up for the others, too.
        last, inputs_last = Moments(), []
        for index, hidden in enumerate(pruned):
            pruned[index], captured = blocks.forward_block(layer, hidden, final.linears, length)
            inputs_last.append(captured[final.linears[0]])
            scale = _token_scales(pruned[index])
            x = inputs_last[index] * scale
            last.add(x)
            if method.updates:
                last.add_drift(x, None, (dense[index] - pruned[index]) * scale)
        change = prune_group(final, last)
        for index, x in enumerate(inputs_last):
            pruned[index] += x @ change.T
    progress(model.layers, model.layers, "pruning blocks")


def _token_scales(hidden: Matrix) -> Matrix:
    """Returns what the next norm multiplies each token with, up to its weight: [tokens, 1] for [tokens, hidden]."""
    sizes = np.sqrt(np.square(hidden).mean(axis=1, keepdims=True))
    return np.asarray(np.divide(1, sizes, out=np.zeros_like(sizes), where=sizes > 0), dtype=np.float32)
