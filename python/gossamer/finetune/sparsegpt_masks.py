"""Raising zeros by SparseGPT or ADMM in the midst of training: what is dropped is made up for by what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..arch import spec
from ..nn.block import Block
from ..nn.decoder import Decoder
from ..pruning.masks import Target
from ..pruning.methods.admm import admm
from ..pruning.methods.sparsegpt import sparsegpt
from ..pruning.moments import Moments
from .batches import Batch

_BATCH = 4  # windows in one forward pass
_SOLVERS = {"sparsegpt": sparsegpt, "admm": admm}


@torch.no_grad()
def raise_zeros(
    student: Decoder,
    batch: Batch,
    zeros: dict[str, int],
    values: dict[str, Tensor],
    keep: dict[str, Tensor],
    autocast: Callable[[], Any],
    method: str = "sparsegpt",
) -> None:
    """Prunes the blocks one after the other, on what pruned ones give out.

    Args:
        student: What is trained; its weights become what they are in `values`.
        batch: Windows to measure the inputs on.
        zeros: How many each matrix is to have, by parameter name.
        values: The weights that the optimizer moves, by parameter name; changed.
        keep: True where a weight may live; changed.
        autocast: Makes the context that products are taken in.
        method: "sparsegpt" (Frantar and Alistarh 2023) or "admm" (Boža 2024).

    Raises:
        GossamerError: inputs are not finite; the line names the matrix.
    """
    parameters = dict(student.named_parameters())
    parts = list(batch.split(_BATCH))
    length = batch.tokens.shape[1]
    steps = [student.whole(length) if part.first is None else student.apart(part.first) for part in parts]
    states = [student.enter(part.tokens, step) for part, step in zip(parts, steps, strict=True)]
    for index, block in enumerate(student.layers):
        assert isinstance(block, Block)
        with autocast(), _products(block, student.config.blocks[index]) as watched:
            for part, state, step in zip(parts, states, steps, strict=True):
                watched.real = part.real
                block(state, step)
        groups = student.config.blocks[index].groups
        for group in (each.linears for each in groups):
            moments = Moments()
            if group[0] in watched.sums:
                moments.add_product(watched.sums[group[0]].cpu().numpy())
            else:  # an expert that no token came to: by magnitude
                moments.add_product(np.eye(values[f"layers.{index}.{group[0]}.weight"].shape[1]))
            moments.check(f"layers.{index}.{group[0]}")
            for linear in group:
                name = f"layers.{index}.{linear}.weight"
                pruned = _pruned(values[name], keep[name], zeros[name], moments.gram, method)
                values[name].copy_(pruned)
                keep[name].logical_and_(pruned.to(keep[name].device) != 0)
                parameters[name].copy_(values[name])
        with autocast():
            states = [block(state, step) for state, step in zip(states, steps, strict=True)]


def _pruned(values: Tensor, keep: Tensor, zeros: int, gram: NDArray[np.float64], method: str) -> Tensor:
    matrix = values.detach().to("cpu", torch.float32).numpy()
    target = Target(min(zeros, matrix.size - 1) / matrix.size)
    return torch.from_numpy(_SOLVERS[method](matrix, gram, target, keep.to("cpu").numpy()))


@dataclass
class _Watched:
    """Sums of x x^T over the inputs of a block's linears, float32, by the first linear that has them.

    Attributes:
        sums: They.
        real: False at padding, [windows, length], of what runs now.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    real: Tensor | None = None


@contextmanager
def _products(block: Block, description: spec.Block) -> Iterator[_Watched]:
    """Adds up while a block runs."""
    watched = _Watched()

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            # Experts get some of the tokens, and do not tell which: padding among them, if any, counts there.
            x = x[watched.real] if x.ndim == 3 else x
            with torch.autocast(x.device.type, enabled=False):
                product = x.float().T @ x.float()
            watched.sums[name] = watched.sums[name] + product if name in watched.sums else product

        return block.get_submodule(name).register_forward_pre_hook(add)

    hooks = [watch(group.linears[0]) for group in description.groups]
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()
