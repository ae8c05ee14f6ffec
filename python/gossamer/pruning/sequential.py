"""The walk through the blocks: each is pruned on the outputs of the already pruned ones before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from .masks import Target
from .solvers import Gram, Matrix, Solver

# Linears of a block that read the same inputs, in the order of the computation.
GROUPS: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))

# Tokens in one native call: enough to keep the cores busy, few enough that a block's captured inputs stay small.
_CHUNK_TOKENS = 4096


class Blocks(Protocol):
    """What the walk needs of an engine; `gossamer._core.Decoder` has it."""

    def embed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Returns [tokens, hidden] for [tokens] ids."""

    def forward_block(
        self, index: int, hidden: NDArray[np.float32], capture: Sequence[str] = (), sequence_length: int = 0
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Runs one block over hidden [tokens, hidden]; also returns the inputs of the linears named in `capture`."""


def prune_blocks(
    blocks: Blocks,
    layers: int,
    windows: NDArray[np.int32],
    solve: Solver,
    target: Target,
    read: Callable[[str], Matrix],
    replace: Callable[[str, Matrix], None],
    progress: Callable[[int, int, str], None],
) -> None:
    """Prunes every linear of every block in turn.

    Args:
        blocks: The engine that holds the model.
        layers: Number of blocks.
        windows: Calibration tokens, [windows, length]; each window is a sequence of its own.
        solve: The method.
        target: The zeros to make in each matrix.
        read: Gives the weight of a canonical name such as "layers.3.q".
        replace: Takes the pruned weight of that name; must put it into `blocks` too.
        progress: Called with (blocks done, blocks, what) before each block, and after the last.

    Raises:
        GossamerError: a weight or an input is NaN or infinite, or the moments of a layer's inputs have no factor.
    """
    length = windows.shape[1]
    per_chunk = max(1, _CHUNK_TOKENS // length)
    chunks = [blocks.embed(part.reshape(-1)) for part in np.split(windows, range(per_chunk, len(windows), per_chunk))]
    for layer in range(layers):
        progress(layer, layers, "pruning blocks")
        grams = _measure(blocks, layer, chunks, length)
        for group, gram in zip(GROUPS, grams, strict=True):
            for linear in group:
                name = f"layers.{layer}.{linear}"
                if not np.isfinite(gram).all():
                    raise GossamerError(f"{name}: the inputs measured in calibration are not finite")
                weight = read(name)
                if not np.isfinite(weight).all():
                    raise GossamerError(f"{name}: the weight has NaN or infinite values")
                try:
                    pruned = solve(weight, gram, target)
                except GossamerError as error:
                    raise GossamerError(f"{name}: {error}") from None
                replace(name, pruned)
        if layer + 1 < layers:
            chunks = [blocks.forward_block(layer, chunk, (), length)[0] for chunk in chunks]
    progress(layers, layers, "pruning blocks")


def _measure(blocks: Blocks, layer: int, chunks: list[NDArray[np.float32]], length: int) -> list[Gram]:
    """Returns the sum of x x^T over all tokens for the inputs of each group of a block, float64 [cols, cols].

    A chunk's product is float32, chunks add up in float64: relative errors of the sum stay near 1e-6, far below the
    damping.
    """
    grams: list[Gram] = []
    for chunk in chunks:
        inputs = blocks.forward_block(layer, chunk, [group[0] for group in GROUPS], length)[1]
        for index, group in enumerate(GROUPS):
            x = inputs[group[0]]
            product = (x.T @ x).astype(np.float64)
            if index < len(grams):
                grams[index] += product
            else:
                grams.append(product)
    return grams
