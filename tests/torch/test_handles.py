"""What stands between torch and the native weights, whatever a program has set as torch's defaults."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer.torch
from gossamer.torch import SparseLinear, desparsify, sparsify
from torch_layers import pruned, random


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def everything(
    dense: nn.Module, path: Path, options: dict[str, Any], mode: AbstractContextManager[Any]
) -> list[Tensor]:
    """What a life of packed layers gives: a product, gradients, a model loaded from a file, one made dense again."""
    model, loaded, x = copy.deepcopy(dense), copy.deepcopy(dense), random(5, 64).requires_grad_()
    with mode:
        sparsify(model, **options)
        y = model(x)
        y.sum().backward()
        gossamer.torch.save(model, path)
        gossamer.torch.load(loaded, path)
        found = [y, x.grad, loaded(x), *(layer.to_dense().weight for layer in model if isinstance(layer, SparseLinear))]
        desparsify(model)
    return [*found, *model.parameters(), model(x)]


@pytest.mark.parametrize(
    "options",
    [{"format": "bitmap"}, {"format": "bitmap", "trainable": True}, {"format": "csr", "weights": "int8"}],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize(
    "mode",
    [
        lambda: default_type(torch.float64),
        lambda: default_type(torch.bfloat16),
        lambda: default_type(torch.float16),
        lambda: torch.device("meta"),
    ],
    ids=["float64", "bfloat16", "float16", "meta"],
)
def test_defaults_of_torch_change_nothing(
    tmp_path: Path, mode: Callable[[], AbstractContextManager[Any]], options: dict[str, Any]
) -> None:
    dense = nn.Sequential(pruned(96, 64), nn.GELU(), pruned(33, 96, seed=1))
    plain = everything(dense, tmp_path / "plain.safetensors", options, contextlib.nullcontext())
    for one, other in zip(plain, everything(dense, tmp_path / "m.safetensors", options, mode()), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
