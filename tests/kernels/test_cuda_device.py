"""The kernels on a GPU: what test_cuda_kernels.py checks as loops, and what only GPUs have: streams, graphs, devices.

bench/gpu_check.sh runs the tests whose name begins with test_small under compute-sanitizer, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gossamer import GossamerError, _core
from gossamer.arch.llama import Sizes
from gossamer.arch.spec import Transformer

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
from cuda_steps import check_attention, check_steps  # noqa: E402
from gossamer.gpu.cuda import CudaWeight, why_unavailable  # noqa: E402
from gossamer.gpu.roofline import cached, gpu_roof  # noqa: E402
from gossamer.nn.engine import Engine  # noqa: E402
from gossamer.torch import SparseLinear, sparsify  # noqa: E402
from reference_model import random_tensors  # noqa: E402
from torch_layers import pruned  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu_that_works() -> None:
    if reason := why_unavailable():
        pytest.fail(f"there is a GPU, but {reason}")


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, *PATTERNS], ids=str)
def test_small_records_and_products(type: str, pattern: tuple[int, int] | None) -> None:
    for group in GROUPS[type]:
        for shape in SHAPES:
            weight = pack(type, group, shape, 0.5, pattern)
            gpu = CudaWeight(weight)
            check(weight, gpu, inputs(3, weight.cols, dtypes_for(type)[0]).cuda())
            stored, found = codes_or_bits(weight, gpu)
            np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, (2, 4), (16, 32)], ids=str)
def test_small_every_number_of_tokens(type: str, pattern: tuple[int, int] | None) -> None:
    weight = pack(type, GROUPS[type][-1], (70, 650), 0.6, pattern)
    for splits in (1, 3):
        gpu = CudaWeight(weight, splits=splits)
        for tokens in TOKENS:
            for dtype in dtypes_for(type):
                bias = torch.linspace(-2, 2, 70).to("cuda", dtype)
                check(weight, gpu, inputs(tokens, 650, dtype).cuda(), bias)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, (2, 4)], ids=str)
def test_real_sizes_and_a_token_in_any_company(type: str, pattern: tuple[int, int] | None) -> None:
    weight = pack(type, GROUPS[type][-1], (2752, 4096), 0.5, pattern)
    gpu = CudaWeight(weight)
    x = inputs(64, 4096, dtypes_for(type)[0]).cuda()
    check(weight, gpu, x)
    alone = torch.cat([gpu.linear(row[None]) for row in x[:17]])
    for tokens in (1, 8, 16, 17, 64):
        for _ in range(3):
            assert torch.equal(gpu.linear(x[:tokens])[:17], alone[:tokens])


@pytest.mark.parametrize("type", TYPES)
def test_small_loops_over_non_zeros(type: str) -> None:
    for group in GROUPS[type]:
        for shape in [(70, 650), (35, 4200)]:
            weight = pack(type, group, shape, 0.95, None, "csr")
            gpu = CudaWeight(weight)
            assert gpu._nonzeros is not None
            for tokens in (1, 2, 3, 4, 5):
                for dtype in dtypes_for(type):
                    check(weight, gpu, inputs(tokens, shape[1], dtype).cuda())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_small_steps_between_linears(dtype: torch.dtype) -> None:
    from gossamer import _cuda

    check_steps(_cuda, "cuda:0", dtype)
    check_attention(_cuda, "cuda:0", dtype)


def test_a_captured_graph_replays() -> None:
    weight = pack("f16", 0, (300, 2048), 0.5, None)
    gpu = CudaWeight(weight, splits=4)
    x = inputs(5, 2048, torch.float16).cuda()
    expected = gpu.linear(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gpu.linear(x)
    for _ in range(3):
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(y, expected)


def test_streams_do_not_share_scratch() -> None:
    weight = pack("bf16", 0, (2048, 4096), 0.5, None)
    gpu = CudaWeight(weight, splits=8)
    x = inputs(16, 4096, torch.bfloat16).cuda()
    expected = gpu.linear(x)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(gpu.linear(x))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected) for y in results)


def test_the_current_device_stays() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    weight = pack("f16", 0, (64, 128), 0.5, None)
    gpu = CudaWeight(weight, "cuda:1")
    check(weight, gpu, inputs(2, 128, torch.float16).to("cuda:1"))
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="x is on cuda:0, the weight on cuda:1"):
        gpu.linear(inputs(2, 128, torch.float16).to("cuda:0"))


def test_bad_calls_leave_the_gpu_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = pack("f16", 0, (64, 128), 0.5, None)
    gpu = CudaWeight(weight)
    with pytest.raises(ValueError, match="x is on cpu, the weight on cuda:0"):
        gpu.linear(inputs(2, 128, torch.float16))
    with pytest.raises(RuntimeError, match=r"CUDA: .*invalid device ordinal"):
        gpu._kernels.expand(gpu._weight, "f16", True, gpu._records.data_ptr(), 128, 99, 0)
    with monkeypatch.context() as patch:

        def no_memory(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("no memory")

        patch.setattr(torch, "zeros", no_memory)
        with pytest.raises(GossamerError, match="out of memory on cuda:0 while repacking a weight of 64 x 128"):
            CudaWeight(weight)
    check(weight, gpu, inputs(2, 128, torch.float16).cuda())


def test_the_roof_of_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    roof = gpu_roof()
    assert 100 < roof.bandwidth < 20_000
    assert cached() == roof


# --- SparseLinear -----------------------------------------------------------------------------------------------------


def layer_on_gpu(rows: int, cols: int, dtype: torch.dtype, **options: object) -> tuple[SparseLinear, torch.nn.Linear]:
    dense = pruned(rows, cols, dtype=dtype)
    return SparseLinear.from_dense(dense, "bitmap", **options).to("cuda"), dense


@pytest.mark.parametrize("weights", ["f32", "f16", "bf16", "int8", "int4"])
def test_layers_move_to_the_gpu_and_back(weights: str) -> None:
    layer, _ = layer_on_gpu(300, 520, torch.float32, weights=weights)
    stored = layer.to_dense().weight.detach()
    assert stored.is_cuda
    with torch.no_grad():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for tokens in (1, 9, 64, 100):
                x = inputs(tokens, 520, dtype).cuda()
                exact = x.double() @ stored.double().T + layer.bias.double()
                size = x.double().abs() @ stored.double().abs().T + layer.bias.double().abs()
                rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
                # Beyond 64 tokens integer values are rounded with their scales; the bias has the type of the inputs.
                assert ((layer(x).double() - exact).abs() <= (2 * rounding + 600 * 2.0**-23) * size).all()
    back = layer.to("cpu")
    assert torch.equal(back.to_dense().weight, stored.cpu())


def test_layers_in_a_captured_graph() -> None:
    model = torch.nn.Sequential(pruned(1024, 512), torch.nn.SiLU(), pruned(512, 1024, seed=1)).bfloat16().cuda()
    assert len(sparsify(model, format="bitmap").packed) == 2  # packed where they lie
    x = inputs(4, 512, torch.bfloat16).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        model(x)
        with torch.cuda.graph(graph):
            y = model(x)
    with torch.no_grad():
        for seed in range(3):
            x.copy_(torch.randn(4, 512, generator=torch.Generator().manual_seed(seed)))
            graph.replay()
            assert torch.equal(y, model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_layers_compile_and_autocast() -> None:
    layer, dense = layer_on_gpu(300, 520, torch.float32, weights="bf16")
    x = inputs(5, 520, torch.float32).cuda()
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        expected = layer(x)
        assert expected.dtype == torch.bfloat16
        torch.testing.assert_close(expected, dense.cuda()(x), rtol=2**-5, atol=2**-5)
        compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")  # captures graphs
        for _ in range(3):
            assert torch.equal(compiled(x), expected)


def test_gradients_on_the_gpu() -> None:
    layer, dense = layer_on_gpu(300, 520, torch.bfloat16)
    x = inputs(6, 520, torch.bfloat16).cuda().requires_grad_()
    layer(x).float().square().sum().backward()
    same = x.detach().clone().requires_grad_()
    dense.cuda()(same).float().square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=2**-5, atol=2**-3)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad, rtol=2**-5, atol=2**-3)


def test_layers_name_themselves_when_devices_differ() -> None:
    layer, _ = layer_on_gpu(30, 40, torch.float16, name="fc")
    with pytest.raises(ValueError, match=r"^fc: inputs lie on device cpu and weights on cuda:0; both must be"):
        layer(torch.zeros(2, 40, dtype=torch.float16))


# --- the engine -------------------------------------------------------------------------------------------------------


def small_model(type: str) -> tuple[Transformer, dict[str, _core.Weight], dict[str, np.ndarray]]:
    """Two blocks of random matrices, half of them zero, biases at q, k and v, and dense tables."""
    sizes = {"hidden": 96, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 32, "intermediate": 160, "vocab": 320}
    frequencies = tuple(10000.0 ** -(i / 16) for i in range(16))
    config = Sizes(**sizes, context=128, norm_eps=1e-5, inv_freq=frequencies, biases=("q", "k", "v")).describe()
    weights, vectors = {}, {}
    for name, values in random_tensors(config).items():
        if values.ndim == 1:
            vectors[name] = values
        elif "." in name:
            values[np.random.default_rng(len(weights)).random(values.shape) < 0.5] = 0
            weights[name] = _core.pack(values, "bitmap", type, 64 if type.startswith("int") else 0)
        else:
            weights[name] = _core.pack(values, "dense", type if type in ("f16", "bf16") else "bf16")
    return config, weights, vectors


@pytest.mark.parametrize("type", TYPES)
def test_a_decoder_on_the_gpu(monkeypatch: pytest.MonkeyPatch, type: str) -> None:
    monkeypatch.setattr("gossamer.nn.engine._CHUNK", 16)
    monkeypatch.setattr("gossamer.nn.engine._FIRST", 32)
    model = small_model(type)
    ids = np.random.default_rng(5).integers(0, 300, 100).astype(np.int32)
    exact = Engine(*model, "cpu", dtype=torch.float32).step([(0, ids)], True)
    gpu = Engine(*model)
    error = np.abs(gpu.step([(0, ids)], True) - exact).max()
    assert 0 < error < 0.1 * np.abs(exact).max()
    singly = np.concatenate([gpu.step([(1, ids[i : i + 1])]) for i in range(len(ids))])  # captured, replayed, anew
    assert np.abs(singly - exact).max() <= 2 * error
    gpu.rollback(1, 60)
    again = np.concatenate([gpu.step([(1, ids[i : i + 1])]) for i in range(40, len(ids))])
    np.testing.assert_array_equal(again, singly[40:])
    gpu.free(0)
    gpu.free(1)
    np.testing.assert_array_equal(gpu.step([(2, ids[:1])]), singly[:1])  # in a cache that was used before
