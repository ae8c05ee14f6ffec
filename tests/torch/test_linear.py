from __future__ import annotations

import concurrent.futures
import copy
import gc
import io
import pickle
import resource

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.formats import FORMATS, TYPES  # noqa: E402
from gossamer.gpu.dtypes import FLOATS  # noqa: E402
from gossamer.torch import SparseLinear  # noqa: E402
from torch_layers import keep_two_of_four, pruned, random, worst  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def unit(layer: SparseLinear) -> int:
    """Inputs that share a scale of the activations; 0 where they are multiplied as they are."""
    return 0 if layer.layout.type in FLOATS else 32 if layer.layout.group == 32 else 64


def check(layer: SparseLinear, x: torch.Tensor) -> None:
    y = layer(x)
    assert (y.shape, y.dtype) == ((*x.shape[:-1], layer.out_features), x.dtype)
    stored = layer._handle().weight.unpack()
    assert worst(y, x, torch.from_numpy(stored), layer.bias, unit(layer)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_products_of_every_format_and_type(format: str, weights: str, dtype: torch.dtype) -> None:
    linear = pruned(45, 132)
    keep_two_of_four(linear)
    layer = SparseLinear.from_dense(linear, format, weights)
    assert (layer.layout.format, layer.layout.type) == (format, weights)
    with torch.no_grad():
        for batch in (1, 3, 40):
            check(layer, random(batch, 132, dtype=dtype))


@given(data=st.data())
@example(data=None)
@settings(max_examples=200, deadline=None)
def test_products_of_any_shape(data: st.DataObject | None) -> None:
    if data is None:
        rows, cols, zeros, batch, weights, dtype = 5000, 3000, 0.5, 2, "auto", torch.float32
    else:
        sizes = [(5000, 40), (40, 3000), (300, 300), (1, 1)]
        rows, cols = data.draw(st.one_of(*(st.tuples(st.integers(1, r), st.integers(1, c)) for r, c in sizes)))
        zeros = data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
        batch = data.draw(st.integers(0, 5))
        weights = data.draw(st.sampled_from(["auto", *TYPES]))
        dtype = data.draw(st.sampled_from(DTYPES))
    linear = pruned(rows, cols, zeros, bias=batch % 2 == 0)
    layer = SparseLinear.from_dense(linear, weights=weights)
    if weights == "auto":
        assert torch.equal(layer.to_dense().weight, linear.weight)
    with torch.no_grad():
        check(layer, random(batch, cols, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_finite_half_passes_through_unchanged(dtype: torch.dtype) -> None:
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = halves[halves.isfinite()]
    x = nn.functional.pad(finite, (0, -len(finite) % 62)).view(-1, 62)  # tails of 14 behind whole registers
    layer = SparseLinear.from_dense(with_weight(torch.eye(62)))
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_beyond_a_type_become_infinite_and_nan_stays(dtype: torch.dtype) -> None:
    layer = SparseLinear.from_dense(with_weight(torch.full((1, 1), 2.0)))
    x = torch.tensor([[torch.finfo(dtype).max], [torch.finfo(dtype).min], [torch.inf], [torch.nan]], dtype=dtype)
    assert torch.equal(layer(x)[:3], torch.tensor([[torch.inf], [-torch.inf], [torch.inf]], dtype=dtype))
    assert layer(x)[3].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_auto_keeps_the_layers_type_and_values(dtype: torch.dtype) -> None:
    linear = pruned(70, 90, 0.6, dtype=dtype)
    layer = SparseLinear.from_dense(linear)
    assert FLOATS[layer.layout.type] == dtype
    back = layer.to_dense()
    assert torch.equal(back.weight, linear.weight)
    assert torch.equal(back.bias, linear.bias)
    assert back.weight.dtype == dtype
    x = random(4, 90, dtype=dtype)
    assert worst(layer(x), x, linear.weight, linear.bias) <= 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", ["f32", "f16", "int8"])
def test_prompts_are_as_exact_as_tokens(weights: str, bias: bool) -> None:
    layer = SparseLinear.from_dense(pruned(45, 132, bias=bias), weights=weights)
    with torch.no_grad():
        check(layer, random(3, 300, 132))
        check(layer, random(900, 150)[:, :132])
        check(layer, random(300, 3, 132).transpose(0, 1))
    x = random(900, 132).requires_grad_()
    layer(x).sum().backward()
    stored = torch.from_numpy(layer._handle().weight.unpack())
    torch.testing.assert_close(x.grad, stored.sum(0).expand_as(x))


@pytest.mark.parametrize("shape", [(80,), (0, 80), (2, 0, 80), (1, 80), (2, 3, 80), (2, 1, 2, 3, 80)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    layer = SparseLinear.from_dense(pruned(33, 80))
    with torch.no_grad():
        check(layer, random(*shape))
    assert layer(random(*shape)).shape == (*shape[:-1], 33)  # and where the bias learns


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_alignment_of_inputs(dtype: torch.dtype) -> None:
    layer = SparseLinear.from_dense(pruned(33, 80))
    wide = random(6, 5, 200, dtype=dtype)
    inputs = {
        "rows apart": wide[:, 0, :80],
        "every other": wide[..., :160:2],
        "transposed": random(80, 6, dtype=dtype).t(),
        "expanded": random(1, 80, dtype=dtype).expand(4, 80),
        "swapped": random(3, 4, 80, dtype=dtype).transpose(0, 1),
        "negative bit": torch.imag(torch.complex(random(4, 80), random(4, 80)).conj()),
    }
    memory = torch.zeros(4 * 80 * 4 + 1, dtype=torch.uint8)
    size = 4 * 80 * torch.empty(0, dtype=dtype).element_size()
    odd = torch.frombuffer(memory.numpy(), dtype=dtype, offset=1, count=4 * 80).view(4, 80)
    odd.copy_(random(4, 80, dtype=dtype))
    assert odd.data_ptr() % 2 == 1
    assert size <= memory.numel()
    inputs["unaligned"] = odd
    with torch.no_grad():
        assert inputs["negative bit"].is_neg()
        for name, x in inputs.items():
            assert torch.equal(layer(x), layer(x.resolve_neg().clone().contiguous())), name


def test_a_product_does_not_change_its_inputs_and_is_the_same_for_any_number_of_threads() -> None:
    layer = SparseLinear.from_dense(pruned(3000, 300))
    x = random(5, 300)
    before = x.clone()
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(layer(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(x, before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_threads_of_a_pool_call_one_layer_at_the_same_time() -> None:
    layer = SparseLinear.from_dense(pruned(700, 300), weights="int8")
    inputs = [random(1 + n % 7, 300, dtype=DTYPES[n % 3], seed=n) for n in range(40)]
    with torch.no_grad():
        expected = [layer(x) for x in inputs]

    def call(number: int) -> bool:
        with torch.no_grad():
            return torch.equal(layer(inputs[number % 40]), expected[number % 40])

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(800)))


def test_ten_thousand_products_leave_nothing_behind() -> None:
    layer = SparseLinear.from_dense(pruned(64, 256))
    x = random(8, 256)

    def run(count: int) -> int:
        with torch.no_grad():
            for _ in range(count):
                layer(x)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = run(500)
    objects = len(gc.get_objects())
    after = run(10_000)
    assert after - before < 10_000 * 64 * 4 * 8 / 1024 / 100  # KiB: a hundredth of the outputs
    assert len(gc.get_objects()) - objects < 100


def test_native_weights_go_with_their_layers() -> None:
    from gossamer.torch import handles

    gc.collect()
    before = len(handles._handles)
    layer = SparseLinear.from_dense(pruned(64, 64))
    layer(random(1, 64))
    assert len(handles._handles) == before + 1
    del layer
    gc.collect()
    assert len(handles._handles) == before


def test_converting_the_module_leaves_the_streams_alone() -> None:
    linear = pruned(50, 70)
    layer = SparseLinear.from_dense(linear)
    x = random(3, 70)
    expected = layer(x)
    for convert, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)):
        converted = getattr(copy.deepcopy(layer), convert)()
        assert (converted._handle().weight.unpack() == linear.weight.detach().numpy()).all()
        assert converted.bias.dtype == converted.weight.dtype == converted.to_dense().weight.dtype == dtype
        assert worst(converted(x.to(dtype)), x.to(dtype), linear.weight, converted.bias) <= 1
    moved = layer.to("meta")
    with pytest.raises(ValueError, match="meta"):
        moved(x)
    assert worst(expected, x, linear.weight, linear.bias) <= 1


def test_double_inputs_are_exact() -> None:
    linear = pruned(50, 70)
    layer = SparseLinear.from_dense(linear).double()
    x = random(3, 70).double()
    assert torch.allclose(layer(x), linear.double()(x), rtol=1e-13, atol=1e-13)


def test_autocast_computes_in_its_type() -> None:
    linear = pruned(50, 70)
    layer = SparseLinear.from_dense(linear)
    x = random(3, 70)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == linear(x).dtype == torch.bfloat16
        assert layer(x.double()).dtype == torch.float64
        assert worst(layer(x), x.bfloat16(), linear.weight, linear.bias) <= 1
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("trainable", [False, True])
def test_copies_and_pickles_are_independent(trainable: bool) -> None:
    layer = SparseLinear.from_dense(pruned(50, 70), trainable=trainable, name="block.fc")
    x = random(3, 70)
    expected = layer(x)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    others = {
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "torch.save": torch.load(saved, weights_only=False),
    }
    layer.values.data.zero_()
    for how, other in others.items():
        assert torch.equal(other(x), expected), how
        assert (other.name, other.trainable, other.layout) == ("block.fc", trainable, layer.layout), how
    assert not torch.equal(layer(x), expected)


def test_shared_memory_and_replaced_tensors_are_seen() -> None:
    a, b = SparseLinear.from_dense(pruned(50, 70)), SparseLinear.from_dense(pruned(50, 70, 0.7, seed=2))
    x = random(3, 70)
    first, second = a(x), b(x)
    a.share_memory()
    assert torch.equal(a(x), first)
    a.load_state_dict(b.state_dict())
    assert torch.equal(a(x), second)
    assert torch.equal(a(x), b(x))


def test_values_written_in_place_are_seen() -> None:
    layer = SparseLinear.from_dense(pruned(50, 70, bias=False), "bitmap")
    x = random(3, 70)
    before = layer(x)
    count = int((layer.to_dense().weight != 0).sum())
    layer.values[: 4 * count].view(torch.float32).mul_(2)
    assert torch.equal(layer(x), 2 * before)


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        layer = SparseLinear.from_dense(pruned(50, 70))
        x = random(3, 70)
        first = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), first)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(2, 71), ValueError, "last dimension of the inputs must be 70, got (2, 71)"),
        (torch.zeros(()), ValueError, "last dimension"),
        (torch.zeros(2, 70, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(2, 70, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.zeros(2, 70, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.zeros(2, 70, device="meta"), ValueError, "device meta"),
        (torch.zeros(2, 70).to_sparse(), TypeError, "must be dense tensors, got layout torch.sparse_coo"),
        (torch.zeros(2, 70).to_mkldnn(), TypeError, "got layout torch._mkldnn"),
        ([0.0] * 70, TypeError, "must be a tensor, got list"),
    ],
)
def test_bad_inputs_name_the_layer(x: object, error: type[Exception], words: str) -> None:
    for name, title in (("blocks.3.fc", "blocks.3.fc"), ("", "SparseLinear(70, 50)")):
        layer = SparseLinear.from_dense(pruned(50, 70), name=name)
        with pytest.raises(error) as raised:
            layer(x)
        assert str(raised.value).startswith(f"{title}: ")
        assert words in str(raised.value)


@pytest.mark.parametrize("bias", [torch.zeros(50, device="meta"), torch.zeros(49), torch.zeros(50, 1)])
def test_a_bias_that_does_not_fit_is_not_read(bias: torch.Tensor) -> None:
    layer = SparseLinear.from_dense(pruned(50, 70))
    layer.bias = nn.Parameter(bias)
    for grad in (torch.no_grad, torch.enable_grad):
        with grad(), pytest.raises(ValueError, match=r"a bias must be 50 numbers|the bias on meta"):
            layer(torch.zeros(2, 70))


def with_weight(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def bad_dense_layers() -> dict[str, tuple[nn.Module, type[Exception], str]]:
    nan = torch.ones(3, 4)
    nan[1, 2] = torch.nan
    quantized = nn.Linear(4, 3)
    quantized.__class__ = type("QuantizedLinear", (nn.Linear,), {})
    return {
        "nan": (with_weight(nan), ValueError, "NaN"),
        "meta": (nn.Linear(4, 3, device="meta"), ValueError, "meta"),
        "double": (with_weight(torch.ones(3, 4, dtype=torch.float64)), TypeError, "float64"),
        "empty": (with_weight(torch.ones(0, 4)), ValueError, "at least one row"),
        "conv": (nn.Conv1d(1, 2, 3), TypeError, "torch.nn.modules.conv.Conv1d"),
        "quantized": (quantized, TypeError, "QuantizedLinear"),
    }


@pytest.mark.parametrize("case", bad_dense_layers())
def test_layers_that_cannot_be_packed_are_named(case: str) -> None:
    module, error, words = bad_dense_layers()[case]
    with pytest.raises(error) as raised:
        SparseLinear.from_dense(module, name="head")
    assert str(raised.value).startswith("head: ")
    assert words in str(raised.value)


def test_infinity_is_kept_in_float_types_and_refused_in_others() -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = torch.inf
    assert SparseLinear.from_dense(with_weight(weight)).to_dense().weight[1, 2] == torch.inf
    with pytest.raises(ValueError, match="fc: its weight holds infinite values, which cannot be stored as int8"):
        SparseLinear.from_dense(with_weight(weight), weights="int8", name="fc")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "coo"}, "format must be one of"),
        ({"weights": "int3"}, "weights must be one of"),
        ({"activations": "a4"}, "activations must be one of"),
        ({"group": 7}, "group must be one of"),
        ({"trainable": True, "weights": "int8"}, "trainable layers"),
        ({"trainable": True, "format": "csr"}, "trainable layers"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SparseLinear.from_dense(pruned(4, 4), **options)


def test_broken_streams_are_an_error_that_names_the_layer() -> None:
    layer = SparseLinear.from_dense(pruned(50, 70), "bitmap", name="fc")
    layer.masks.fill_(255)
    with pytest.raises(GossamerError, match="fc: its packed bytes were changed"):
        layer(random(1, 70))


def test_what_models_ask_of_a_linear() -> None:
    layer = SparseLinear.from_dense(pruned(50, 70, bias=False), "nm", "f16")
    assert (layer.in_features, layer.out_features, layer.bias) == (70, 50, None)
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.device.type) == ((50, 70), torch.float32, "cpu")
    assert "in_features=70, out_features=50, bias=False" in repr(layer)
    assert not list(layer.parameters())
    assert layer.nbytes < 50 * 70 * 4
