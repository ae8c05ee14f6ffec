"""What each matrix matters to a model: outliers of its scores, and what happens when it alone is pruned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..arch.spec import Attention, Block, Transformer
from ..engine import Blocks
from ..errors import GossamerError
from ..generation.divergence import log_probabilities, mean_divergence
from ..progress import Progress
from .linalg import Matrix
from .masks import Target
from .methods.wanda import importance, keep_important

_PROBES = 2
_PROBE_LENGTH = 256
# Of OWL: what counts as an outlier, in means over the block.
_OUTLIER = 5.0

Read = Callable[[str], Matrix]


class Probe:
    """A dense model's states on a few calibration tokens.

    Args:
        blocks: The engine that holds the dense model.
        model: Its description.
        windows: Calibration tokens, [windows, length]; up to 256 tokens of each of two are used.
        read: Gives the weight of a canonical name such as "layers.3.q".

    Raises:
        GossamerError: an input of a matrix is NaN or infinite.
    """

    def __init__(self, blocks: Blocks, model: Transformer, windows: NDArray[np.int32], read: Read) -> None:
        chosen = windows[:: max(1, -(-len(windows) // _PROBES)), :_PROBE_LENGTH]
        self._blocks = blocks
        self._model = model
        self._length = chosen.shape[1]
        self._read = read
        self._states = [blocks.embed(chosen.reshape(-1), self._length)]
        self._squares: dict[str, NDArray[np.float64]] = {}
        for layer, block in enumerate(model.blocks):
            firsts = [group.linears[0] for group in block.groups]
            state, inputs = blocks.forward_block(layer, self._states[-1], firsts, self._length)
            self._states.append(state)
            for group in block.groups:
                x = inputs[group.linears[0]]
                if not len(x):  # an expert that no token came to: as if all inputs were alike
                    x = np.ones((1, x.shape[1]), np.float32)
                squares = np.square(x, dtype=np.float64).sum(axis=0)
                if not np.isfinite(squares).all():
                    raise GossamerError(
                        f"layers.{layer}.{group.linears[0]}: the inputs measured in calibration are not finite"
                    )
                self._squares.update({f"layers.{layer}.{linear}": squares for linear in group.linears})

    def outliers(self, progress: Progress) -> dict[str, float]:
        """Returns, for every matrix, the share of its block's scores that exceed five times their mean.

        Scores are those of `wanda`, |w| times the norm of the input (Yin et al. 2023, equation 1).
        """
        result: dict[str, float] = {}
        layers = self._model.layers
        for layer, each in enumerate(self._model.blocks):
            progress(layer, layers, "measuring outliers")
            names = [f"layers.{layer}.{linear}" for group in each.groups for linear in group.linears]
            block = np.concatenate([importance(self._read(name), self._squares[name]).ravel() for name in names])
            share = float(np.mean(block > _OUTLIER * block.mean(dtype=np.float64)))
            result.update(dict.fromkeys(names, share))
        progress(layers, layers, "measuring outliers")
        return result

    def divergence(self, target: Target, put: Callable[[str, Matrix], None], progress: Progress) -> dict[str, float]:
        """Returns how far predictions move when a part of a block is pruned by `wanda`, and nothing else is.

        That is the mean Kullback-Leibler divergence from the dense model, in nats a token. The matrices that are pruned
        at once share it by their entries.

        Args:
            target: What to prune to.
            put: Puts a weight of a canonical name into the engine; the dense ones are there again in the end.
            progress: Called with (done, parts, what).

        Raises:
            GossamerError: predictions are NaN or infinite.
        """
        result: dict[str, float] = {}
        dense = log_probabilities(self._blocks.head(self._states[-1]))
        parts = [(layer, part) for layer, block in enumerate(self._model.blocks) for part in _parts(block)]
        total = len(parts)
        for index, (layer, part) in enumerate(parts):
            progress(index, total, "measuring what matters")
            weights = {f"layers.{layer}.{linear}": self._read(f"layers.{layer}.{linear}") for linear in part}
            try:
                for name, weight in weights.items():
                    put(name, keep_important(weight, importance(weight, self._squares[name]), target))
                state = self._states[layer]
                for after in range(layer, self._model.layers):
                    state, _ = self._blocks.forward_block(after, state, (), self._length)
            finally:
                for name, weight in weights.items():
                    put(name, weight)
            cost = mean_divergence(dense, self._blocks.head(state))
            if not np.isfinite(cost):
                raise GossamerError(f"layers.{layer}: predictions are not finite with {', '.join(part)} pruned")
            entries = sum(weight.size for weight in weights.values())
            result.update({name: max(cost, 0.0) * weight.size / entries for name, weight in weights.items()})
        progress(total, total, "measuring what matters")
        return result


def _parts(block: Block) -> list[tuple[str, ...]]:
    """What is pruned at once to see what it does: attention is small and matters little, and counts as one.

    Others count as two, what reads and what joins the stream, of all experts together.
    """
    parts: list[tuple[str, ...]] = []
    for branch in block.branches:
        groups = branch.mixer.groups
        sides = [[group.linears for group in groups if group.joins is joins] for joins in (False, True)]
        found = [sum(side, ()) for side in sides]
        parts += [sum(found, ())] if isinstance(branch.mixer, Attention) else found
    return parts
