"""What each matrix matters to a model: outliers of its scores, and what happens when it alone is pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

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
from .walk import Place, Texts, Walk, chunked

_PROBES = 2
_PROBE_LENGTH = 256
# Of OWL: what counts as an outlier, in means over the block.
_OUTLIER = 5.0

Read = Callable[[str], Matrix]
Change = Callable[[str, Matrix], Matrix]
"""Makes of a matrix [rows, cols], told its canonical name, what is to be measured."""


def probed(texts: Sequence[Texts]) -> list[Texts]:
    """Returns the few texts to measure on: two, up to 256 tokens of each; of those that read something, as many tokens.

    They are spread evenly.
    """
    if texts[0].reads is None:
        windows = np.concatenate([each.tokens for each in texts])
        return chunked(windows[:: max(1, -(-len(windows) // _PROBES)), :_PROBE_LENGTH])
    rows = [each.rows(slice(row, row + 1)) for each in texts for row in range(len(each.tokens))]
    mean = sum(row.longest for row in rows) / len(rows)
    return rows[:: max(1, len(rows) // max(_PROBES, int(_PROBES * _PROBE_LENGTH / mean)))]


class Probe:
    """A dense model's states on a few calibration tokens.

    Attributes:
        squares: Sum of the squares of each input over the tokens, [cols], by the canonical name of the matrix.

    Args:
        blocks: The engine that holds the dense model.
        model: Its description.
        texts: To calibrate on; some of them are used.
        read: Gives the weight of a canonical name such as "layers.3.q".

    Raises:
        GossamerError: an input of a matrix is NaN or infinite.
    """

    def __init__(self, blocks: Blocks, model: Transformer, texts: Sequence[Texts], read: Read) -> None:
        self._texts = probed(texts)
        self._walk = Walk(blocks, model)
        self._blocks = blocks
        self._read = read
        self.squares: dict[str, NDArray[np.float64]] = {}
        states = [self._walk.enter(each) for each in self._texts]
        memories: list[Matrix | None] = [None] * len(self._texts)
        self._states = [(states, memories)]  # before each block, and behind the last
        for place in self._walk.places:
            firsts = [group.linears[0] for group in place.block.groups]
            states, memories, inputs = self._behind(place, states, memories, firsts)
            self._states.append((states, memories))
            for group in place.block.groups:
                x = np.concatenate([each[group.linears[0]] for each in inputs])
                if not len(x):  # an expert that no token came to: as if all inputs were alike
                    x = np.ones((1, x.shape[1]), np.float32)
                squares = np.square(x, dtype=np.float64).sum(axis=0)
                if not np.isfinite(squares).all():
                    raise GossamerError(
                        f"{place.prefix}{group.linears[0]}: the inputs measured in calibration are not finite"
                    )
                self.squares.update({f"{place.prefix}{linear}": squares for linear in group.linears})

    def _behind(
        self, place: Place, states: list[Matrix], memories: list[Matrix | None], names: Sequence[str] = ()
    ) -> tuple[list[Matrix], list[Matrix | None], list[dict[str, Matrix]]]:
        """The states behind a block, what they read from there on, and the inputs of linears of the names."""
        ran = [self._walk.forward(place, *each, names) for each in zip(self._texts, states, memories, strict=True)]
        states, inputs = [one for one, _ in ran], [captured for _, captured in ran]
        if place.number + 1 == self._walk.turn:
            crossed = [self._walk.cross(*each) for each in zip(self._texts, states, strict=True)]
            memories, states = [memory for memory, _ in crossed], [begun for _, begun in crossed]
        return states, memories, inputs

    def _predictions(self, states: list[Matrix]) -> NDArray[np.float32]:
        """Logits of all texts, [tokens, vocab], of states behind the last block."""
        return np.concatenate([self._blocks.head(each) for each in states])

    def outliers(self, progress: Progress) -> dict[str, float]:
        """Returns, for every matrix, the share of its block's scores that exceed five times their mean.

        Scores are those of `wanda`, |w| times the norm of the input (Yin et al. 2023, equation 1).
        """
        result: dict[str, float] = {}
        total = len(self._walk.places)
        for place in self._walk.places:
            progress(place.number, total, "measuring outliers")
            names = [f"{place.prefix}{linear}" for group in place.block.groups for linear in group.linears]
            block = np.concatenate([importance(self._read(name), self.squares[name]).ravel() for name in names])
            share = float(np.mean(block > _OUTLIER * block.mean(dtype=np.float64)))
            result.update(dict.fromkeys(names, share))
        progress(total, total, "measuring outliers")
        return result

    def divergence(self, target: Target, put: Callable[[str, Matrix], None], progress: Progress) -> dict[str, float]:
        """Returns how far predictions move when a part of a block is pruned by `wanda`, and nothing else is.

        Args:
            target: What to prune to.
            put: As for `moved`.
            progress: As for `moved`.

        Raises:
            GossamerError: predictions are NaN or infinite.
        """
        return self.moved([self.pruned(target)], put, progress)[0]

    def pruned(self, target: Target) -> Change:
        """Returns the change that prunes by `wanda` to a target."""
        return lambda name, weight: keep_important(weight, importance(weight, self.squares[name]), target)

    def moved(
        self, changes: Sequence[Change], put: Callable[[str, Matrix], None], progress: Progress
    ) -> list[dict[str, float]]:
        """Returns how far predictions move when a part of a block is changed, and nothing else is, for each change.

        That is the mean Kullback-Leibler divergence from the dense model, in nats a token. The matrices that are
        changed at once share it by their entries.

        Args:
            changes: What is done to matrices, one change after the other.
            put: Puts a weight of a canonical name into the engine; the dense ones are there again in the end.
            progress: Called with (done, measurements, what).

        Raises:
            GossamerError: predictions are NaN or infinite.
        """
        results: list[dict[str, float]] = [{} for _ in changes]
        dense = log_probabilities(self._predictions(self._states[-1][0]))
        parts = [(place, part) for place in self._walk.places for part in _parts(place.block)]
        total = len(parts) * len(changes)
        for index, ((place, part), (change, result)) in enumerate(
            product(parts, list(zip(changes, results, strict=True)))
        ):
            progress(index, total, "measuring what matters")
            weights = {f"{place.prefix}{linear}": self._read(f"{place.prefix}{linear}") for linear in part}
            try:
                for name, weight in weights.items():
                    put(name, change(name, weight))
                states, memories = self._states[place.number]
                for after in self._walk.places[place.number :]:
                    states, memories, _ = self._behind(after, states, memories)
            finally:
                for name, weight in weights.items():
                    put(name, weight)
            cost = mean_divergence(dense, self._predictions(states))
            if not np.isfinite(cost):
                where = place.prefix.removesuffix(".")
                raise GossamerError(f"{where}: predictions are not finite with {', '.join(part)} changed")
            entries = sum(weight.size for weight in weights.values())
            result.update({name: max(cost, 0.0) * weight.size / entries for name, weight in weights.items()})
        progress(total, total, "measuring what matters")
        return results


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
