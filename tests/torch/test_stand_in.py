"""Whoever asks a packed layer for its weight learns what it is, and is refused its values."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.torch import SparseLinear, desparsify, sparsify  # noqa: E402
from torch_layers import pruned, random, worst  # noqa: E402

OUT, IN = 128, 64
X, W = random(4, IN), random(OUT, IN, seed=2)


READS: dict[str, Callable[[Tensor], Any]] = {
    "linear": lambda w: F.linear(X, w),
    "matmul": lambda w: X @ w.T,
    "t": lambda w: X @ w.t(),
    "addmm": lambda w: torch.addmm(torch.zeros(OUT), X, w.mT),
    "bmm": lambda w: torch.bmm(X[None], w.transpose(0, 1)[None]),
    "einsum": lambda w: torch.einsum("bi,oi->bo", X, w),
    "conv": lambda w: F.conv1d(X[:, :, None], w.view(OUT, IN, 1)),
    "embedding": lambda w: F.embedding(torch.arange(3), w),
    "allclose": lambda w: torch.allclose(w, W),
    "==": lambda w: w == W,
    "norm": lambda w: w.data.norm(),
    "numpy": lambda w: w.detach().numpy(),
    "item": lambda w: w[0, 0].item(),
    "cat": lambda w: torch.cat([W, w]),
    "copied from": lambda w: torch.empty(OUT, IN).copy_(w),
    "average": lambda w: W.clone().lerp_(w, 0.1),
    "foreach": lambda w: torch._foreach_add([W], [w]),
    "converted": lambda w: w.to(torch.bfloat16),
    "data_ptr": lambda w: w.data_ptr(),
    "vector": lambda w: nn.utils.parameters_to_vector([w]),
    "inference": torch.inference_mode()(lambda w: X @ w.T),
    "func.grad": torch.func.grad(lambda w: F.linear(X, w).sum()),
    "vmap": torch.vmap(lambda row: X @ row),
    "saved": lambda w: torch.save({"w": w.detach()}, io.BytesIO()),
    "pickled": pickle.dumps,
}
WRITES: dict[str, Callable[[Tensor], Any]] = {
    "merge": lambda w: w.data.add_(W),
    "+=": lambda w: w.data.__iadd__(W),
    "copy": lambda w: w.data.copy_(W),
    "data": lambda w: setattr(w, "data", W),
    "row": lambda w: w.__setitem__(0, 1.0),
    "init": nn.init.kaiming_uniform_,
    "zero": nn.init.zeros_,
    "out": lambda w: torch.mul(W, 2, out=w),
    "vector": lambda w: nn.utils.vector_to_parameters(torch.zeros(OUT * IN), [w]),
    "optimizer": lambda w: torch.optim.SGD([w], lr=0.1),
    "groups": lambda w: torch.optim.AdamW([{"params": [w]}]),
    "trained": lambda w: w.requires_grad_(),
    "grad": lambda w: setattr(w, "grad", W),
    "hook": lambda w: w.register_hook(print),
    "parameter": nn.Parameter,
}


def packed(**options: Any) -> nn.Module:
    model = nn.Sequential(nn.Sequential(pruned(OUT, IN, 0.6)))
    assert len(sparsify(model, format="bitmap", **options).packed) == 1
    return model


@pytest.mark.parametrize("use", [*READS.values(), *WRITES.values()], ids=[*READS, *(f"write {use}" for use in WRITES)])
def test_values_are_refused_by_the_layers_name(use: Callable[[Tensor], Any]) -> None:
    model = packed()
    before = model(X)
    with pytest.raises(GossamerError, match=r"^0\.0\.weight: .* asks for the values of a packed weight.*desparsify.*$"):
        use(model[0][0].weight)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("use", READS.values(), ids=[*READS])
def test_a_layer_made_dense_again_gives_the_values(use: Callable[[Tensor], Any]) -> None:
    model = nn.Sequential(pruned(OUT, IN, 0.6))
    weight = model[0].weight.detach()
    sparsify(model, format="bitmap")
    desparsify(model)
    found, wanted = use(model[0].weight.detach()), use(weight)
    if isinstance(found, Tensor):
        torch.testing.assert_close(found, wanted)


def test_values_are_refused_where_functions_are_not_seen() -> None:
    weight = packed()[0][0].weight
    with torch._C.DisableTorchFunctionSubclass():
        for use in (lambda: X @ weight.t(), lambda: weight.add_(1), weight.clone):
            with pytest.raises(GossamerError, match=r"0\.0\.weight: aten"):
                use()


def test_no_address_of_nothing_is_handed_on() -> None:
    with pytest.raises(RuntimeError, match="data pointer"):
        torch.utils.dlpack.to_dlpack(packed()[0][0].weight)


@pytest.mark.parametrize(
    "replaced",
    [
        lambda model: setattr(model[0][0], "weight", nn.Parameter(W)),
        lambda model: setattr(model[0][0], "weight", W),
        lambda model: torch.func.functional_call(model, {"0.0.weight": W}, (X,)),
        lambda model: model.load_state_dict({"0.0.weight": W, "0.0.bias": torch.zeros(OUT)}, strict=False),
        lambda model: prune.l1_unstructured(model[0][0], "weight", 0.3),
        lambda model: nn.utils.parametrizations.spectral_norm(model[0][0]),
    ],
)
def test_another_weight_is_refused(replaced: Callable[[nn.Module], object]) -> None:
    model = packed()
    before = model(X)
    with pytest.raises(GossamerError, match=r"^0\.0\.weight: "):
        replaced(model)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("trainable", [False, True])
def test_what_needs_no_values_is_answered(trainable: bool) -> None:
    model = packed(trainable=trainable)
    layer = model[0][0]
    weight = layer.weight
    assert weight is layer.weight
    assert (weight.shape, weight.size(), weight.size(1), weight.size(-2)) == ((OUT, IN), (OUT, IN), IN, OUT)
    assert (weight.dtype, weight.device, weight.layout) == (torch.float32, torch.device("cpu"), torch.strided)
    assert (weight.dim(), weight.ndim, weight.numel(), torch.numel(weight)) == (2, 2, OUT * IN, OUT * IN)
    assert (weight.element_size(), weight.is_floating_point(), torch.is_floating_point(weight)) == (4, True, True)
    assert (weight.requires_grad, weight.is_meta, weight.is_cuda) == (trainable, False, False)
    assert (weight.data.shape, weight.detach().device, weight.data.requires_grad) == ((OUT, IN), X.device, False)
    weight.requires_grad = trainable
    assert weight.requires_grad_(trainable) is weight
    assert isinstance(weight, Tensor)
    assert repr(weight) == f"{weight}" == "PackedWeight(0.0.weight, (128, 64), torch.float32, cpu)"
    assert {weight: 1}[layer.weight] == 1
    assert torch.equal(torch.zeros_like(weight), torch.zeros(OUT, IN))
    assert weight.new_ones(3).dtype == torch.float32
    assert torch.equal(layer(X.to(weight.device, weight.dtype)), layer(X))
    if trainable:
        layer.values.requires_grad_(False)
        assert not layer.weight.requires_grad
    else:
        assert weight.grad is None


def test_it_changes_with_its_layer() -> None:
    model = packed()
    other = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(model))
    kept = model[0][0].weight
    assert other[0][0].weight is not kept
    assert again[0][0].weight.shape == copy.deepcopy(kept).shape == (OUT, IN)
    other.bfloat16()
    assert (other[0][0].weight.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    other.to("meta")
    assert other[0][0].weight.is_meta
    layer = SparseLinear.from_dense(pruned(OUT, IN))
    assert layer.weight.title == "SparseLinear(64, 128).weight"
    layer.name = "fc"
    assert layer.weight.title == "fc.weight"
    assert not any(isinstance(value, type(kept)) for value in model.state_dict().values())


def test_the_weight_of_a_conv1d_lies_transposed() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(utils.Conv1D(OUT, IN))
    sparsify(model, format="bitmap")
    assert model[0].weight.shape == (IN, OUT)


class Asking(nn.Module):
    """Its forward asks for everything about a weight but the values."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = pruned(OUT, IN, 0.6)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.proj.weight
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.dim() == weight.ndim == 2:
            x = x.to(weight.device).to(weight.dtype) + (weight.shape[0] + weight.size(1)) / weight.size()[0]
        return self.proj(x) if weight.numel() and not weight.requires_grad else x


@pytest.mark.parametrize("how", ["eager", "aot_eager", "export", "strict export"])
def test_it_can_be_asked_in_a_traced_model(how: str) -> None:
    model = Asking().requires_grad_(False)
    with torch.no_grad():
        wanted = pruned(OUT, IN, 0.6)(X + (OUT + IN) / OUT)
    sparsify(model, format="bitmap")
    torch.compiler.reset()
    if "export" in how:
        found = torch.export.export(model, (X,), strict="strict" in how).module()(X)
    else:
        found = torch.compile(model, backend=how, fullgraph=True)(X)
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layers", ["*", "layers.1.*"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_leaves_its_fast_path(layers: str, norm_first: bool) -> None:
    """With a padding mask it would hand nested tensors and the weights to one fused function."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(IN, 4, OUT, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x, mask = random(3, 9, IN), torch.arange(9) >= torch.tensor([[6], [9], [4]])
    with torch.no_grad():
        masked, whole = model(x, src_key_padding_mask=mask), model(x)
        assert len(sparsify(model, format="bitmap", include=layers).packed) == (4 if layers == "*" else 2)
        torch.testing.assert_close(model(x, src_key_padding_mask=mask)[~mask], masked[~mask])
        torch.testing.assert_close(model(x), whole)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs(layout: torch.layout) -> None:
    linear = pruned(OUT, IN)
    parts = [random(3, IN), random(5, IN, seed=2)]
    found = SparseLinear.from_dense(linear, "bitmap")(torch.nested.nested_tensor(parts, layout=layout))
    assert (found.is_nested, found.layout) == (True, layout)
    for y, x in zip(found.unbind(), parts, strict=True):
        assert worst(y, x, linear.weight, linear.bias) <= 1


class Adapted(nn.Module):
    """Merges its adapter into the layer below when it is no longer trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base = pruned(OUT, IN, 0.6)
        self.down, self.up = nn.Parameter(random(4, IN)), nn.Parameter(random(OUT, 4))
        self.merged = False

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        if not mode:
            with torch.no_grad():
                self.base.weight.copy_(self.base.weight + self.up @ self.down)
            self.merged = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.merged else self.base(x) + x @ self.down.T @ self.up.T


def test_an_adapter_is_not_merged_in_silence() -> None:
    model = nn.Sequential(Adapted())
    before = model(X)
    sparsify(model, format="bitmap")
    torch.testing.assert_close(model(X), before)
    with pytest.raises(GossamerError, match=r"0\.base\.weight"):
        model.eval()
    torch.testing.assert_close(model(X), before)
    desparsify(model)
    model.eval()
    torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.apply(lambda module: nn.init.normal_(module.weight) if hasattr(module, "weight") else None),
        lambda model: model.apply(lambda module: getattr(module, "reset_parameters", int)()),
        lambda model: nn.utils.fusion.fuse_linear_bn_eval(model[0][0].eval(), nn.BatchNorm1d(OUT).eval()),
        lambda model: setattr(nn.Embedding(OUT, IN), "weight", model[0][0].weight),
        lambda model: {module.weight.data_ptr() for module in model.modules() if hasattr(module, "weight")},
    ],
)
def test_whole_models_are_not_changed_in_silence(use: Callable[[nn.Module], object]) -> None:
    model = packed()
    before = model(X)
    with pytest.raises(GossamerError, match=r"^0\.0\.weight"):
        use(model)
    assert torch.equal(model(X), before)


def test_averaged_copies_follow_trained_values() -> None:
    model = packed(trainable=True)
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    copies = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average)
    copies.update_parameters(model)
    before = model[0][0].to_dense().weight.detach()
    model(X).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    copies.update_parameters(model)
    after = model[0][0].to_dense().weight.detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(copies.module[0][0].to_dense().weight.detach(), (before + after) / 2)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
@pytest.mark.parametrize("trainable", [False, True])
def test_an_optimizer_that_is_handed_one_says_which(make: Any, trainable: bool) -> None:
    model = nn.Sequential(pruned(OUT, IN))
    sparsify(model, trainable=trainable, format="bitmap")
    for parameters in ([model[0].weight], [{"params": [model[0].weight], "lr": 0.1}]):
        with pytest.raises(GossamerError, match=r"^0\.weight: "):
            make(parameters, lr=0.1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_by_name_of_the_layer() -> None:
    model = nn.Sequential(nn.ReLU(), pruned(OUT, IN))
    sparsify(model, format="bitmap")
    with pytest.raises(GossamerError, match=r"^1: torch\.jit\.script compiles no packed layers"):
        torch.jit.script(model)
    desparsify(model)
    assert torch.equal(torch.jit.script(model)(X), model(X))
