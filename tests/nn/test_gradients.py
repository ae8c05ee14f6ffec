"""Functions with gradients of their own, beside what torch chains together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from torch.nn import functional  # noqa: E402

from gossamer.nn.functions import (  # noqa: E402
    Distances,
    Scores,
    attention,
    rms_norm,
    rotary_angles,
    rotate,
    silu_gate,
)
from gossamer.nn.gradients import Products  # noqa: E402


def drawn(*shape: int, dtype: Any = None, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype or torch.float32).requires_grad_()


def check(function: Callable[..., Any], chain: Callable[..., Any], *inputs: Any, tolerance: float) -> None:
    """Values and all gradients, against those of torch's chain."""
    found, wanted = function(*inputs), chain(*inputs)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    along = drawn(*found.shape, dtype=found.dtype, seed=1).detach()
    own, others = (torch.autograd.grad(y, inputs, along) for y in (found, wanted))
    for one, other in zip(own, others, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(weighted: bool) -> None:
    def chain(x: Any, *weight: Any) -> Any:
        unit = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
        return unit * weight[0] if weight else unit

    weight = [drawn(12)] if weighted else []
    check(lambda *given: rms_norm(*given, eps=0.1), chain, drawn(2, 5, 12), *weight, tolerance=1e-5)


@pytest.mark.parametrize("width", [8, 11], ids=["all of a head", "a part"])
def test_rotation(width: int) -> None:
    cos, sin = rotary_angles(torch.arange(5), torch.tensor([1.0, 0.5, 0.3, 0.1]), 1.25)

    def chain(x: Any) -> Any:
        a, b, rest = x.split([4, 4, width - 8], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    check(lambda x: rotate(x, cos, sin), chain, drawn(2, 3, 5, width), tolerance=1e-5)


def test_silu_gate() -> None:
    def chain(both: Any) -> Any:
        gate, up = both.chunk(2, -1)
        return functional.silu(gate) * up

    check(silu_gate, chain, drawn(2, 5, 24), tolerance=1e-5)
    check(silu_gate, chain, drawn(2, 5, 24, dtype=torch.bfloat16), tolerance=0)


def test_products_are_those_of_single_matrices_in_the_type_of_the_input() -> None:
    x, weights = drawn(2, 5, 12, dtype=torch.bfloat16), [drawn(rows, 12) for rows in (7, 3)]

    def chain(x: Any, *weights: Any) -> Any:
        wide = x.float()  # so that no sum is rounded twice
        return torch.cat([functional.linear(wide, weight.to(x.dtype).float()) for weight in weights], -1).to(x.dtype)

    check(Products.apply, chain, x, *weights, tolerance=2**-7)
    held = [weight.detach() for weight in weights]
    assert torch.equal(Products.apply(x, *held).detach(), Products.apply(x, *weights).detach())
    (alone,) = torch.autograd.grad(Products.apply(x, *held).sum(), x)
    (both,) = torch.autograd.grad(Products.apply(x, *weights).sum(), x)
    assert torch.equal(alone, both), "matrices that are held have no gradient, and change none"


@pytest.mark.parametrize("window", [None, 70], ids=["all before", "a window"])
@pytest.mark.parametrize("starts", [[0], [0, 100, 230]], ids=["one text", "texts apart"])
def test_attention_that_keeps_its_weights(starts: list[int], window: int | None) -> None:
    """Over several blocks of queries, whose keys begin and end at others; rows of a batch differ."""
    length = 300
    queries, keys, values = drawn(2, 6, length, 8), drawn(2, 3, length, 8, seed=2), drawn(2, 3, length, 8, seed=3)
    positions = torch.arange(length)
    first = torch.tensor(starts)[torch.searchsorted(torch.tensor(starts), positions, right=True) - 1]
    distances = Distances(positions, positions, torch.stack([first, first.clamp(max=100)]))
    seen = distances.seen(window)[:, None]
    assert len(distances.blocks(window)) == 3
    assert (len(starts), window) == (1, None) or distances.blocks(window)[2][1].start > 0, "nor are keys all read"

    def chain(*given: Any) -> Any:
        return functional.scaled_dot_product_attention(*given, attn_mask=seen, scale=0.3, enable_gqa=True)

    scores = Scores(0.3, window)
    check(lambda *given: attention(*given, scores, distances), chain, queries, keys, values, tolerance=1e-5)
    found = attention(queries, keys, values, scores, distances)
    assert type(found.grad_fn.next_functions[0][0]).__name__ == "AttentionBackward"
