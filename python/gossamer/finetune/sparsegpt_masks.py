"""Raising zeros by SparseGPT in the midst of training: what is dropped is made up for by what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..arch import spec
from ..nn.block import Block
from ..nn.decoder import Decoder
from ..pruning.masks import Target
from ..pruning.methods.sparsegpt import sparsegpt
from ..pruning.moments import Moments

_BATCH = 4  # windows in one forward pass


@torch.no_grad()
def raise_zeros(
    student: Decoder,
    windows: Tensor,
    zeros: dict[str, int],
    values: dict[str, Tensor],
    keep: dict[str, Tensor],
    autocast: Callable[[], Any],
) -> None:
    """Prunes the blocks one after the other by SparseGPT (Frantar and Alistarh 2023), on what pruned ones give out.

    Args:
        student: What is trained; its weights become what they are in `values`.
        windows: Tokens to measure the inputs on, [windows, length].
        zeros: How many each matrix is to have, by parameter name.
        values: The weights that the optimizer moves, by parameter name; changed.
        keep: True where a weight may live; changed.
        autocast: Makes the context that products are taken in.

    Raises:
        GossamerError: inputs are not finite; the line names the matrix.
    """
    parameters = dict(student.named_parameters())
    step = student.whole(windows.shape[1])
    states = [student.enter(part, step) for part in torch.split(windows, _BATCH)]
    for index, block in enumerate(student.layers):
        assert isinstance(block, Block)
        with autocast(), _products(block, student.config.blocks[index]) as sums:
            for state in states:
                block(state, step)
        groups = student.config.blocks[index].groups
        for group in (each.linears for each in groups):
            moments = Moments()
            if group[0] in sums:
                moments.add_product(sums[group[0]].cpu().numpy())
            else:  # an expert that no token came to: by magnitude
                moments.add_product(np.eye(values[f"layers.{index}.{group[0]}.weight"].shape[1]))
            moments.check(f"layers.{index}.{group[0]}")
            for linear in group:
                name = f"layers.{index}.{linear}.weight"
                pruned = _pruned(values[name], keep[name], zeros[name], moments.gram)
                values[name].copy_(pruned)
                keep[name].logical_and_(pruned.to(keep[name].device) != 0)
                parameters[name].copy_(values[name])
        with autocast():
            states = [block(state, step) for state in states]


def _pruned(values: Tensor, keep: Tensor, zeros: int, gram: NDArray[np.float64]) -> Tensor:
    matrix = values.detach().to("cpu", torch.float32).numpy()
    target = Target(min(zeros, matrix.size - 1) / matrix.size)
    return torch.from_numpy(sparsegpt(matrix, gram, target, keep.to("cpu").numpy()))


@contextmanager
def _products(block: Block, description: spec.Block) -> Iterator[dict[str, Tensor]]:
    """Sums x x^T over the inputs of a block's linears while it runs, float32, by the first linear that has them."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            with torch.autocast(x.device.type, enabled=False):
                product = x.float().T @ x.float()
            sums[name] = sums[name] + product if name in sums else product

        return block.get_submodule(name).register_forward_pre_hook(add)

    hooks = [watch(group.linears[0]) for group in description.groups]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
