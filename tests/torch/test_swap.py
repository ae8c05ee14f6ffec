from __future__ import annotations

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

from gossamer.torch import SparseLinear, desparsify, sparsify  # noqa: E402
from torch_layers import keep_two_of_four, pruned, random, worst  # noqa: E402


class Model(nn.Module):
    """Layers of every kind that `sparsify` has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 256)
        self.sparse = pruned(256, 256, 0.6)
        self.pattern = pruned(256, 256, 0.0, seed=2)
        keep_two_of_four(self.pattern)
        self.full = pruned(256, 256, 0.0, seed=3)
        self.small = pruned(4, 256, 0.6, seed=4)
        self.twice = pruned(256, 256, 0.9, seed=5)
        self.again = self.twice
        self.attention = nn.MultiheadAttention(256, 4)
        self.head = nn.Linear(256, 300, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in (self.sparse, self.pattern, self.full, self.twice, self.again):
            x = torch.tanh(layer(x)) + x
        return self.head(self.attention(x, x, x)[0]) + self.small(x).sum()


def test_layers_that_pay_are_replaced_and_the_rest_is_told() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    dense = copy.deepcopy(model)
    report = sparsify(model)
    by_name = {layer.name: layer for layer in report}
    assert {name for name, layer in by_name.items() if layer.packed} == {"sparse", "pattern", "twice"}
    assert (by_name["pattern"].format, by_name["sparse"].format) == ("nm", "bitmap")
    assert "zeros" in by_name["sparse"].why
    assert "too few zeros" in by_name["full"].why
    assert "too small" in by_name["small"].why
    assert by_name["head"].why == "tied to embed.weight"
    assert "NonDynamicallyQuantizableLinear" in by_name["attention.out_proj"].why
    assert model.head.weight is model.embed.weight
    assert model.again is model.twice
    assert isinstance(model.again, SparseLinear)
    assert by_name["sparse"].bytes < by_name["sparse"].dense_bytes
    assert abs(by_name["twice"].zeros - 0.9) < 0.02
    tokens = torch.arange(12).view(3, 4)
    with torch.no_grad():
        for name in ("sparse", "pattern", "twice"):
            x = torch.randn(5, 256)
            stored = getattr(dense, name)
            assert worst(getattr(model, name)(x), x, stored.weight, stored.bias) <= 1
        assert torch.allclose(model(tokens), dense(tokens), rtol=1e-4, atol=1e-4)
    table = str(report)
    assert all(layer.name in table and layer.why in table for layer in report)
    assert f"bytes before, {sum(layer.bytes for layer in report):,} now" in table
    assert desparsify(model) == 3
    assert type(model.again) is nn.Linear
    assert model.again is model.twice
    assert torch.equal(model(tokens), dense(tokens))


def test_integer_values_pay_at_any_number_of_zeros() -> None:
    model = nn.Sequential(pruned(256, 256, 0.0), pruned(256, 256, 0.6))
    report = sparsify(model, weights="int8")
    assert [layer.format for layer in report] == ["dense", "bitmap"]
    assert {layer.type for layer in report} == {"int8"}


def test_patterns_and_thresholds_choose_layers(caplog: pytest.LogCaptureFixture) -> None:
    def packed(**options: object) -> list[str]:
        layers = {f"layers_{i}": pruned(256, 256, 0.5 + i / 10) for i in range(3)}
        return [layer.name for layer in sparsify(nn.ModuleDict({"a": nn.ModuleDict(layers)}), **options).packed]

    everything = ["a.layers_0", "a.layers_1", "a.layers_2"]
    assert packed() == everything
    assert packed(include="*_1") == ["a.layers_1"]
    assert packed(include=["*_1", "a.*_2"]) == everything[1:]
    assert packed(exclude="*_1") == ["a.layers_0", "a.layers_2"]
    assert packed(include="a.*", exclude=["*_0", "*_1"]) == ["a.layers_2"]
    assert packed(exclude=iter(["*_0", "*_1"])) == ["a.layers_2"]
    assert packed(min_zeros=0.65) == ["a.layers_2"]
    assert packed(format="csr") == everything
    assert not caplog.messages
    assert packed(include=["a.*", "b.*"], exclude="lm_head") == everything
    assert caplog.messages == [
        "include: no linear layer is called 'b.*'",
        "exclude: no linear layer is called 'lm_head'",
    ]


def test_a_format_that_is_asked_for_is_taken() -> None:
    model = nn.Sequential(pruned(8, 8, 0.0), pruned(256, 256))
    assert [layer.format for layer in sparsify(model, format="bitmap")] == ["bitmap", "bitmap"]


def test_layers_with_computed_weights_are_left() -> None:
    model = nn.Sequential(pruned(256, 256), pruned(256, 256), pruned(256, 256))
    parametrizations.weight_norm(model[0])
    prune.l1_unstructured(model[1], "weight", 0.5)
    report = sparsify(model)
    assert [layer.packed for layer in report] == [False, False, True]
    assert "computed from others" in report.layers[1].why
    prune.remove(model[1], "weight")
    assert [layer.name for layer in sparsify(model).packed] == ["1"]


def test_gpt2s_transposed_layers_come_and_go() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    linear = pruned(200, 300)
    conv = utils.Conv1D(200, 300)
    conv.weight = nn.Parameter(linear.weight.detach().t().contiguous())
    conv.bias = nn.Parameter(linear.bias.detach())
    model = nn.Sequential(conv)
    x = torch.randn(4, 300)
    before = conv(x)
    assert [(row.rows, row.cols) for row in sparsify(model).packed] == [(200, 300)]
    assert worst(model(x), x, linear.weight, linear.bias) <= 1
    assert desparsify(model) == 1
    assert type(model[0]) is utils.Conv1D
    assert torch.equal(model[0].weight, conv.weight)
    assert torch.equal(model(x), before)


def test_falcons_linear_layers_come_and_go() -> None:
    from transformers.models.falcon.modeling_falcon import FalconLinear

    model = nn.Sequential(FalconLinear(256, 200)).eval()
    model[0].load_state_dict(pruned(200, 256).state_dict())
    before = model(random(3, 256))
    assert len(sparsify(model, format="bitmap").packed) == 1
    torch.testing.assert_close(model(random(3, 256)), before)
    desparsify(model)
    assert type(model[0]) is FalconLinear
    torch.testing.assert_close(model(random(3, 256)), before)


def test_nothing_is_replaced_where_a_weight_is_bad() -> None:
    model = nn.Sequential(pruned(256, 256), pruned(256, 256))
    with torch.no_grad():
        model[1].weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match="1: its weight holds NaN"):
        sparsify(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    with pytest.raises(ValueError, match="0: its weight is on device meta"):
        sparsify(nn.Sequential(nn.Linear(4, 4, device="meta")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "fp8"}, "weights must be one of"),
        ({"min_zeros": 1.5}, "min_zeros must be between 0 and 1"),
        ({"group": 5}, "group must be one of"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sparsify(nn.Sequential(pruned(4, 4)), **options)


def test_a_linear_itself_cannot_be_replaced() -> None:
    with pytest.raises(TypeError, match=r"SparseLinear\.from_dense"):
        sparsify(pruned(4, 4))


def test_training_mode_and_names_go_over() -> None:
    model = nn.Sequential(pruned(256, 256)).eval()
    sparsify(model, trainable=True)
    assert (model[0].training, model[0].name, model[0].trainable) == (False, "0", True)
    assert [name for name, _ in model.named_parameters()] == ["0.values", "0.bias"]


def test_two_layers_with_one_weight_are_left_tied() -> None:
    model = nn.Sequential(pruned(256, 256), pruned(256, 256))
    model[1].weight = model[0].weight
    assert [layer.why for layer in sparsify(model)] == ["tied to 1.weight", "tied to 0.weight"]


def test_weights_that_lie_in_the_same_memory_are_left_tied() -> None:
    whole = nn.Parameter(torch.cat([pruned(256, 256).weight, pruned(64, 256, seed=1).weight]).detach())
    model = nn.ModuleDict({"q": pruned(256, 256), "k": pruned(64, 256), "other": pruned(256, 256, seed=2)})
    model["q"].weight, model["k"].weight = nn.Parameter(whole.data[:256]), nn.Parameter(whole.data[256:])
    assert [layer.why for layer in sparsify(copy.deepcopy(model), format="bitmap") if not layer.format] == []
    model.register_parameter("whole", whole)
    why = {layer.name: layer.why for layer in sparsify(model, format="bitmap") if not layer.format}
    assert why == {"q": "tied to whole", "k": "tied to whole"}
    head = nn.ModuleList([nn.Embedding(256, 256), pruned(256, 256)])
    head[1].weight.data = head[0].weight.data
    assert sparsify(head, format="bitmap").layers[0].why == "tied to 0.weight"


def test_an_unused_double_layer_is_left() -> None:
    report = sparsify(nn.Sequential(pruned(256, 256).double()))
    assert report.layers[0].why == "float64 cannot be packed"
    assert len(report) == 1


def test_fx_traces_a_model_layer_by_layer() -> None:
    model = nn.Sequential(pruned(256, 256), nn.GELU(), nn.Sequential(pruned(200, 256, seed=1)))
    dense = copy.deepcopy(model)
    assert len(sparsify(model).packed) == 2
    traced = torch.fx.symbolic_trace(model)
    calls = [(node.op, node.target) for node in traced.graph.nodes][1:-1]
    assert calls == [("call_module", "0"), ("call_module", "1"), ("call_module", "2.0")]
    x, same = (random(3, 256).requires_grad_() for _ in range(2))
    assert torch.equal(traced(x), model(x))
    traced(x).square().sum().backward()
    dense(same).square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-4, atol=1e-5)
    again = pickle.loads(pickle.dumps(traced))
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("trainable", [False, True])
def test_fx_traces_a_layer_alone(trainable: bool) -> None:
    layer = SparseLinear.from_dense(pruned(20, 30), trainable=trainable)
    traced = torch.fx.symbolic_trace(layer)
    x = random(3, 30)
    assert torch.equal(traced(x), layer(x))
    assert [name for name, _ in traced.named_parameters()] == [name for name, _ in layer.named_parameters()]
    traced(x).sum().backward()
    assert traced.bias.grad is not None
    assert not trainable or traced.values.grad.any()


def test_what_is_neither_tensor_nor_traced_is_refused() -> None:
    with pytest.raises(TypeError, match=r"SparseLinear\(30, 20\): inputs must be a tensor, got list"):
        SparseLinear.from_dense(pruned(20, 30))([1.0])


def test_a_model_built_without_values_must_have_got_its_buffers() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Module(), pruned(256, 256))
        model[0].register_buffer("inv_freq", torch.ones(4), persistent=False)
        return model

    with torch.device("meta"):
        model = build()
    model.load_state_dict(build().state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"^0\.inv_freq: on device meta, which has no values"):
        sparsify(model)
    assert type(model[1]) is nn.Linear
    model[0].inv_freq = torch.ones(4)
    assert len(sparsify(model).packed) == 1


def test_lazy_layers_are_named() -> None:
    model = nn.Sequential(pruned(64, 64, 0.6), nn.LazyLinear(8))
    with pytest.raises(ValueError, match=r"^1\.weight: has no shape yet"):
        sparsify(model)
    assert type(model[0]) is nn.Linear


def test_bytes_are_not_made_numbers() -> None:
    model = nn.Sequential(pruned(64, 64, 0.6))
    sparsify(model, format="bitmap")
    with pytest.raises(TypeError, match=r"^0: type\(\) makes numbers"):
        model.type(torch.float64)
