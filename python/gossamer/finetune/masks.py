"""Which weights of the blocks stay zero: a mask held fixed, or one that loses weights step by step while training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import GossamerError
from .options import SOLVED

# Optimizer steps between two masks. Solving for them takes as long as training on some thousand tokens does, and a few
# of them are enough.
_EVERY = 8
_TOKENS_SOLVED, _SOLVED = 8192, 8
_BEYOND = 0.01  # zeros that a matrix may have beyond a sparsity: that of a run that goes on was rounded to whole ones


class Masks:
    """The masks of all matrices of the blocks.

    A cubic schedule takes the fraction of zeros of each matrix from what it is to `sparsity`, fast at first and slower
    towards the end (Zhu & Gupta 2017). What is dropped never comes back. Scores are the magnitude relative to the sums
    of row and column, as `gossamer.pruning.magnitude` has it, or the movement away from zero, the sum of -w dL/dw over
    the steps so far (Sanh et al. 2020); SparseGPT and ADMM choose masks and values together, see `sparsegpt_masks`.

    Attributes:
        keep: True where a weight may live, by parameter name.
        movement: The sums, float32, with scores "movement".
    """

    def __init__(
        self,
        values: dict[str, Tensor],
        schedule: str = "fixed",
        sparsity: float = 0.0,
        scores: str = "magnitude",
        step_tokens: int = 1024,
        raising: float = 0.7,
    ) -> None:
        """Takes the zeros that are there.

        Args:
            values: Those matrices, by the names of their parameters; embedding, head, norms and biases have no mask.
            schedule: "fixed", "cubic", or "dense": no masks.
            sparsity: Fraction of zeros of each matrix in the end; for "cubic".
            scores: "magnitude", "movement", "sparsegpt" or "admm".
            step_tokens: Tokens of an optimizer step; masks that are solved for are 8,192 tokens or more apart, and an
                eighth of the raising or more.
            raising: Part of the training in which zeros are raised; above 0.

        Raises:
            GossamerError: the mask is to be fixed and there are no zeros, or to be raised and there are more.
        """
        held = {} if schedule == "dense" else values
        self.keep = {name: value.detach() != 0 for name, value in held.items()}
        self._begin = {name: 1 - int(keep.sum()) / keep.numel() for name, keep in self.keep.items()}
        self._raised = schedule == "cubic"
        self._sparsity = sparsity
        self._done = 0.0
        self._raising, self._every, self._least = raising, _EVERY, 0.0
        if scores in SOLVED:
            self._least = 1 / _SOLVED
            self._every = max(_EVERY, _TOKENS_SOLVED // step_tokens)
        self.movement = {}
        if self._raised and scores == "movement":
            self.movement = {name: torch.zeros_like(values[name], requires_grad=False) for name in self.keep}
        if schedule == "fixed" and not any(self._begin.values()):
            raise GossamerError(
                "the student has no zeros to keep: prune it first, or raise them (schedule cubic, sparsity)"
            )
        if self._raised and self._begin and min(self._begin.values()) > sparsity + _BEYOND:
            raise GossamerError(
                f"every matrix of the student has {min(self._begin.values()):.1%} zeros or more: sparsity {sparsity:g} "
                "raises none; give a higher one, or the schedule fixed"
            )

    @property
    def zeros(self) -> float:
        """Fraction of zeros over all masks; 0 where there are none."""
        entries = sum(keep.numel() for keep in self.keep.values())
        return 1 - sum(int(keep.sum()) for keep in self.keep.values()) / entries if entries else 0.0

    @property
    def begin(self) -> dict[str, float]:
        """Fractions that the schedule starts from, by name; a resumed run has to put them back."""
        return self._begin

    @torch.no_grad()
    def apply(self, tensors: dict[str, Tensor]) -> None:
        """Multiplies weights, gradients or moments by the masks.

        Where gradient, moments and weight are zero, AdamW leaves all of them zero, decay included: a fixed mask has
        only the gradients to see to. (A product, since masked_fill takes ten times as long on the CPU.)
        """
        for name, keep in self.keep.items():
            tensors[name].mul_(keep)

    @torch.no_grad()
    def observe(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """Adds a step's movement, where that is asked for."""
        for name, moved in self.movement.items():
            moved.addcmul_(values[name], gradients[name], value=-1.0)

    def due(self, step: int, progress: float) -> dict[str, int]:
        """Moves on to where the schedule is.

        Args:
            step: Number of the optimizer step that comes.
            progress: Part of the training that is done, 0 ... 1.

        Returns:
            How many zeros each matrix is to have from now on; empty where that is not the moment to change them.
        """
        part = min(progress / self._raising, 1.0)
        early = step % self._every or part < self._done + self._least
        if not self._raised or part <= self._done or (early and part < 1.0):
            return {}
        self._done = part
        reached = 1 - (1 - part) ** 3
        return {
            name: round((self._begin[name] + (self._sparsity - self._begin[name]) * reached) * keep.numel())
            for name, keep in self.keep.items()
        }

    @torch.no_grad()
    def drop(self, zeros: dict[str, int], values: dict[str, Tensor]) -> None:
        """Takes the weights with the lowest scores out of the masks.

        Args:
            zeros: How many each matrix is to have; where it has more, nothing changes.
            values: All parameters by name.
        """
        for name, keep in self.keep.items():
            if zeros[name] > keep.numel() - int(keep.sum()):
                score = self.movement[name] if self.movement else _relative_magnitude(values[name])
                score = score.masked_fill(~keep, -torch.inf).flatten()
                keep.view(-1)[score.topk(zeros[name], largest=False).indices] = False

    def put_back(self, begin: dict[str, float], done: float) -> None:
        """Restores what a stopped run had, beside the tensors."""
        self._begin, self._done = begin, done

    @property
    def done(self) -> float:
        """How far the schedule is, 0 ... 1."""
        return self._done


def _relative_magnitude(values: Tensor) -> Tensor:
    size = values.abs()
    rows, cols = size.sum(1, keepdim=True).clamp(min=1e-30), size.sum(0, keepdim=True).clamp(min=1e-30)
    return size / rows + size / cols
