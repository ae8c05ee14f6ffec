"""`SparseLinear` as it runs on a GPU, with the kernels as loops.

Tensors lie on the processor; everything else, the operators, handles and repacking, is what a GPU gets.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import pytest

torch = pytest.importorskip("torch")
_simt = pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the kernels as loops")

from torch import nn  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.formats import FORMATS, TYPES  # noqa: E402
from gossamer.gpu import cuda  # noqa: E402
from gossamer.torch import SparseLinear, sparsify  # noqa: E402
from gossamer.torch.gpus import GpuHandle  # noqa: E402
from gossamer.torch.handles import MAKERS, _handles  # noqa: E402
from torch_layers import keep_two_of_four, pruned, random, worst  # noqa: E402

HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(MAKERS, "cpu", partial(GpuHandle, kernels=_simt))
    yield
    _handles.clear()


def stored(layer: SparseLinear) -> torch.Tensor:
    return layer._handle().expand(0, layer.out_features, torch.float32)


def seen_bias(layer: SparseLinear, dtype: torch.dtype) -> torch.Tensor:
    """The bias as it is added: kernels take it in the inputs' type."""
    taken = {"f32": (), "f16": (torch.float16,), "bf16": (torch.bfloat16,)}.get(layer.layout.type, HALVES.values())
    return layer.bias.to(dtype) if dtype in taken else layer.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_products_of_every_format_and_type(format: str, weights: str, dtype: torch.dtype) -> None:
    linear = pruned(45, 132)
    keep_two_of_four(linear)
    layer = SparseLinear.from_dense(linear, format, weights)
    assert isinstance(layer._handle(), GpuHandle)
    with torch.no_grad():
        for batch in (1, 3, 40, 64):
            x = random(batch, 132, dtype=dtype)
            y = layer(x)
            assert (y.shape, y.dtype) == ((batch, 45), dtype)
            assert worst(y, x, stored(layer), seen_bias(layer, dtype)) <= 1


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("group", [0, 32, 64])
def test_what_is_expanded_is_what_the_processor_has(weights: str, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseLinear.from_dense(pruned(45, 132), "bitmap", weights, group=group)
    found = {dtype: layer._handle().expand(0, 45, dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)}
    monkeypatch.undo()
    expected = copy.deepcopy(layer)._handle().expand(0, 45, torch.float32)
    assert torch.equal(found[torch.float32], expected)
    assert torch.equal(found[torch.bfloat16], expected.bfloat16())
    assert (found[torch.float64] - expected.double()).abs().max() <= 2.0**-24 * expected.abs().max()


def test_every_number_of_tokens_runs_on_the_packed_weight_or_on_torchs_product() -> None:
    linear = pruned(70, 650, dtype=torch.bfloat16)
    layer = SparseLinear.from_dense(linear, "bitmap")
    with torch.no_grad():
        for batch in (0, 1, 2, 7, 16, 33, 65, 200):
            x = random(batch, 650, dtype=torch.bfloat16)
            assert worst(layer(x), x, linear.weight, linear.bias) <= 1
        alone = layer(x[5:6])
        assert torch.equal(layer(x[:64])[5:6], alone)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_dense_layer(dtype: torch.dtype, trainable: bool) -> None:
    linear = pruned(50, 90, dtype=dtype)
    layer = SparseLinear.from_dense(linear, "bitmap", trainable=trainable)
    x, y = (random(7, n, seed=n).to(dtype) for n in (90, 50))
    ours = x.clone().requires_grad_()
    layer(ours).backward(y)
    weight = linear.weight.detach()
    assert worst(ours.grad, y, weight.t()) <= 1
    assert worst(layer.bias.grad[None], torch.ones(1, 7), y.t()) <= 1
    if trainable:
        count = int((weight != 0).sum())
        full = torch.zeros_like(weight)
        full.view(-1)[layer._handle().places(0, count)] = layer.values.grad[:count]
        dense = (y.double().t() @ x.double()) * (weight != 0)
        size = y.double().abs().t() @ x.double().abs()
        assert ((full - dense).abs() <= 8 * 2.0**-24 * size + torch.finfo(dtype).eps / 2 * dense.abs()).all()


def test_a_dense_copy_shares_nothing_with_the_layer() -> None:
    layer = SparseLinear.from_dense(pruned(50, 90), "bitmap", "f32")
    x = random(3, 90)
    with torch.no_grad():
        before = layer(x)
        layer.to_dense().weight.zero_()
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("weights", ["f32", "int8"])
def test_autocast_changes_no_product_of_float32(weights: str) -> None:
    layer = SparseLinear.from_dense(pruned(50, 90), "bitmap", weights)
    x = random(3, 90)
    with torch.no_grad():
        expected = layer._handle().multiply(x, layer.bias, "auto")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer._handle().multiply(x, layer.bias, "auto"), expected)


def test_too_little_memory_names_device_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    layer = SparseLinear.from_dense(pruned(50, 90), "bitmap", "f32")
    monkeypatch.setattr(torch, "from_numpy", full)
    with pytest.raises(GossamerError, match="out of memory on cpu for a layer of 50 x 90"):
        layer(random(1, 90))


def test_trained_values_are_there_at_once() -> None:
    layer = SparseLinear.from_dense(pruned(50, 90), trainable=True)
    x = random(3, 90)
    with torch.no_grad():
        before = layer(x) - layer.bias
        layer.values.mul_(2)
        assert torch.allclose(layer(x) - layer.bias, 2 * before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["f32", "bf16", "int8"])
def test_operators_pass_torchs_own_checks(weights: str) -> None:
    layer = SparseLinear.from_dense(pruned(20, 30), "bitmap", weights)
    layer.bias.requires_grad_(False)
    x = random(4, 30).requires_grad_()
    torch.library.opcheck(torch.ops.gossamer.linear.default, (x, layer.values, layer._index(), layer._numbers, None))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compiled_and_exported() -> None:
    model = nn.Sequential(pruned(300, 200), nn.GELU(), pruned(200, 300, bias=False, seed=1)).bfloat16()
    assert len(sparsify(model).packed) == 2
    compiled = torch.compile(model, fullgraph=True)
    x = random(5, 200, dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=2**-6, atol=2**-6)
    program = torch.export.export(model.eval(), (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))


def test_autocast_computes_in_its_type() -> None:
    linear = pruned(50, 70)
    layer = SparseLinear.from_dense(linear, weights="bf16")
    x = random(3, 70)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert worst(layer(x), x.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16()) <= 1
    assert layer(x).dtype == torch.float32


def test_copies_states_and_writes_are_seen() -> None:
    a, b = (SparseLinear.from_dense(pruned(50, 70, zeros, seed=s), weights="f16") for zeros, s in ((0.5, 0), (0.7, 2)))
    x = random(3, 70, dtype=torch.float16)
    first, second = a(x), b(x)
    twin = copy.deepcopy(a)
    a.load_state_dict(b.state_dict())
    assert torch.equal(a(x), second)
    assert torch.equal(twin(x), first)
    assert torch.equal(twin.to_dense().weight, pruned(50, 70).weight.half().float())
    with torch.no_grad():
        twin.values.zero_()
        assert torch.equal(twin(x), twin.bias.half().expand(3, -1))


def test_bad_streams_and_devices_name_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseLinear.from_dense(pruned(50, 70), "bitmap", "f16", name="blocks.3.fc")
    with pytest.raises(ValueError, match=r"^blocks\.3\.fc: inputs lie on device meta and weights on cpu; both must be"):
        layer(torch.zeros(2, 70, device="meta"))
    layer.bias = nn.Parameter(layer.bias.detach().to("meta"))
    with pytest.raises(ValueError, match="inputs lie on device cpu and the bias on meta"), torch.no_grad():
        layer(random(2, 70, dtype=torch.float16))
    broken = SparseLinear.from_dense(pruned(50, 70), "bitmap", "f16", name="fc")
    broken.offsets = broken.offsets.flip(0)
    broken.layout_numbers[-1] = 0  # without a checksum, which would tell sooner
    with pytest.raises(ValueError, match=r"^fc: .*offsets"):
        broken(random(2, 70))
    monkeypatch.setitem(MAKERS, "cpu", GpuHandle)
    monkeypatch.setattr(cuda, "why_unavailable", lambda: "there is no GPU")
    lost = SparseLinear.from_dense(pruned(50, 70), "bitmap", "f16", name="fc")
    with pytest.raises(GossamerError, match=r"^fc: CUDA is not available: there is no GPU$"):
        lost(random(2, 70))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_transformers_model_with_its_static_cache() -> None:
    transformers = pytest.importorskip("transformers", reason="the model is one of transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=260, pad_token_id=0)).eval()
    with torch.no_grad():
        for layer in model.model.layers.modules():
            if isinstance(layer, nn.Linear):
                layer.weight[torch.rand_like(layer.weight) < 0.5] = 0
    packed = copy.deepcopy(model).bfloat16()
    assert len(sparsify(packed, format="bitmap", include="model.layers.*").packed) == 14
    prompt = torch.arange(3, 15)[None]
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static", "eos_token_id": 259}
    with torch.no_grad():
        text = packed.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert text.shape == (1, 18)
        # Teacher-forced, beside the dense model in the same type and in float32.
        exact = model(text).logits
        ours, dense = packed(text).logits.float(), copy.deepcopy(model).bfloat16()(text).logits.float()
        assert (ours - exact).abs().max() <= 2 * (dense - exact).abs().max()
        chosen = exact[0, 11:-1].gather(1, text[0, 12:, None])[:, 0]
        assert (chosen >= exact[0, 11:-1].max(-1).values - 2 * (ours - exact).abs().max()).all()
