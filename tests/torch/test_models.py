"""Whole models of `transformers`, tiny and seeded: pruned, sparsified, and compared with the dense pruned ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import gossamer.torch as gt
from torch_models import (
    FAMILIES,
    PRUNED,
    TOKENS,
    U,
    inputs,
    outputs,
    pruned,
)

GENERATING = ("llama", "mixtral", "mpt", "opt", "gpt2", "t5", "whisper")


def with_slow(families: Iterable[str], *slow: str) -> list[Any]:
    """Families as parameters, some of them marked: tracing takes most of the time of this file."""
    return [pytest.param(family, marks=pytest.mark.slow) if family in slow else family for family in families]


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def untied_linears(model: nn.Module) -> set[str]:
    shared = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if "embed" in name}
    shared |= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {name for name, module in model.named_modules() if is_linear(module) and id(module.weight) not in shared}


@contextmanager
def roundings(model: nn.Module, seed: int) -> Iterator[None]:
    """Moves every output of a linear layer by all that a kernel may be off by (see test_kernels), up or down."""
    generator = torch.Generator().manual_seed(seed)

    def move(module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
        depth = weight.shape[1] / 2 + 80
        bound = 1.01 * depth * U * (given[0].abs() @ weight.abs().T) + U * y.abs()
        return y + bound * (2 * torch.randint(0, 2, y.shape, generator=generator) - 1)

    hooks = [module.register_forward_hook(move) for module in model.modules() if is_linear(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("how", PRUNED)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_dense_model(family: str, how: str) -> None:
    """Compared with a float64 run of the dense model.

    The packed model may be off by what that run moves when every linear layer's output is off by its kernel's bound,
    and by what all the other operations are off in float32, which the dense float32 model shows.
    """
    model, given = pruned(family, how), inputs(family)
    exact = copy.deepcopy(model).double()
    if family == "mixtral":
        exact.set_experts_implementation("eager")  # the grouped products of torch know no float64
    given64 = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    wanted = outputs(exact, given64)
    allowed = [(y - z).abs().max() for y, z in zip(outputs(model, given), wanted, strict=True)]
    moved = [torch.zeros(()).double() for _ in wanted]
    for seed in range(3):
        with roundings(exact, seed):
            moved = [
                torch.maximum(most, (y - z).abs().max())
                for most, y, z in zip(moved, outputs(exact, given64), wanted, strict=True)
            ]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = untied_linears(model)
    report = gt.sparsify(model, format=PRUNED[how][1])
    assert {layer.name for layer in report.packed} == expected
    found = outputs(model, given)
    assert len(found) == len(wanted) > 0
    for y, z, dense, linears in zip(found, wanted, allowed, moved, strict=True):
        assert float((y - z).abs().max()) <= float(dense + linears)
        assert float(linears) < 1e-3 * float(z.abs().max())  # so that the bound means something

    assert gt.desparsify(model) == len(expected)
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def generate(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Greedy tokens; without what Whisper's own method does around it, which asks for a real vocabulary."""
    given = {name: value for name, value in given.items() if name != "decoder_input_ids" or "input_features" in given}
    # No token twice: tiny random models fall into loops that nothing would get them out of.
    options = {"max_new_tokens": TOKENS, "do_sample": False, "no_repeat_ngram_size": 1}
    return transformers.GenerationMixin.generate(model, **given, **options)


@pytest.mark.parametrize("how", PRUNED)
@pytest.mark.parametrize("family", GENERATING)
def test_greedy_tokens_are_those_of_the_dense_model(family: str, how: str) -> None:
    model, given = pruned(family, how), inputs(family)
    wanted = generate(model, given)
    gt.sparsify(model, format=PRUNED[how][1])
    assert torch.equal(generate(model, given), wanted)


@pytest.mark.parametrize("family", with_slow(FAMILIES, "t5", "whisper"))
def test_compiled_in_one_graph(family: str) -> None:
    model, given = pruned(family, "50%"), inputs(family)
    gt.sparsify(model, format="bitmap")
    wanted = outputs(model, given)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for y, z in zip(outputs(compiled, given), wanted, strict=True):
        torch.testing.assert_close(y, z)


@pytest.mark.parametrize("family", with_slow(GENERATING, *GENERATING[1:]))
def test_compiled_greedy_tokens(family: str) -> None:
    model, given = pruned(family, "50%"), inputs(family)
    wanted = generate(model, given)
    gt.sparsify(model, format="bitmap")
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, backend="aot_eager", dynamic=True)
    assert torch.equal(generate(model, given), wanted)
