"""The kernels on a card: what test_cuda_kernels.py checks as loops, and what only cards have: streams, graphs, devices.

bench/gpu_check.sh runs the tests whose name begins with test_small under compute-sanitizer, too.
"""

from __future__ import annotations

import numpy as np
import pytest

from gossamer import GossamerError

torch = pytest.importorskip("torch")

from cuda_cases import (  # noqa: E402
    GROUPS,
    PATTERNS,
    SHAPES,
    TOKENS,
    TYPES,
    check,
    codes_or_bits,
    dtypes_for,
    inputs,
    pack,
)
from gossamer.cuda import CudaWeight, why_unavailable  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def card_that_works() -> None:
    if reason := why_unavailable():
        pytest.fail(f"there is a card, but {reason}")


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, *PATTERNS], ids=str)
def test_small_records_and_products(type: str, pattern: tuple[int, int] | None) -> None:
    for group in GROUPS[type]:
        for shape in SHAPES:
            weight = pack(type, group, shape, 0.5, pattern)
            card = CudaWeight(weight)
            check(weight, card, inputs(3, weight.cols, dtypes_for(type)[0]).cuda())
            stored, found = codes_or_bits(weight, card)
            np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, (2, 4), (16, 32)], ids=str)
def test_small_every_number_of_tokens(type: str, pattern: tuple[int, int] | None) -> None:
    weight = pack(type, GROUPS[type][-1], (70, 650), 0.6, pattern)
    for splits in (1, 3):
        card = CudaWeight(weight, splits=splits)
        for tokens in TOKENS:
            for dtype in dtypes_for(type):
                bias = torch.linspace(-2, 2, 70).to("cuda", dtype)
                check(weight, card, inputs(tokens, 650, dtype).cuda(), bias)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, (2, 4)], ids=str)
def test_real_sizes_and_a_token_in_any_company(type: str, pattern: tuple[int, int] | None) -> None:
    weight = pack(type, GROUPS[type][-1], (2752, 4096), 0.5, pattern)
    card = CudaWeight(weight)
    x = inputs(64, 4096, dtypes_for(type)[0]).cuda()
    check(weight, card, x)
    alone = torch.cat([card.linear(row[None]) for row in x[:17]])
    for tokens in (1, 8, 16, 17, 64):
        for _ in range(3):
            assert torch.equal(card.linear(x[:tokens])[:17], alone[:tokens])


def test_a_captured_graph_replays() -> None:
    weight = pack("f16", 0, (300, 2048), 0.5, None)
    card = CudaWeight(weight, splits=4)
    x = inputs(5, 2048, torch.float16).cuda()
    expected = card.linear(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = card.linear(x)
    for _ in range(3):
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(y, expected)


def test_streams_do_not_share_scratch() -> None:
    weight = pack("bf16", 0, (2048, 4096), 0.5, None)
    card = CudaWeight(weight, splits=8)
    x = inputs(16, 4096, torch.bfloat16).cuda()
    expected = card.linear(x)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(card.linear(x))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected) for y in results)


def test_the_current_device_stays() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    weight = pack("f16", 0, (64, 128), 0.5, None)
    card = CudaWeight(weight, "cuda:1")
    check(weight, card, inputs(2, 128, torch.float16).to("cuda:1"))
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="x is on cuda:0, the weight on cuda:1"):
        card.linear(inputs(2, 128, torch.float16).to("cuda:0"))


def test_bad_calls_leave_the_card_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = pack("f16", 0, (64, 128), 0.5, None)
    card = CudaWeight(weight)
    with pytest.raises(ValueError, match="x is on cpu, the weight on cuda:0"):
        card.linear(inputs(2, 128, torch.float16))
    with pytest.raises(RuntimeError, match=r"CUDA: .*invalid device ordinal"):
        card._kernels.expand(card._weight, "f16", True, card._records.data_ptr(), 128, 99, 0)
    with monkeypatch.context() as patch:

        def no_memory(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("no memory")

        patch.setattr(torch, "zeros", no_memory)
        with pytest.raises(GossamerError, match="out of memory on cuda:0 while repacking a weight of 64 x 128"):
            CudaWeight(weight)
    check(weight, card, inputs(2, 128, torch.float16).cuda())
