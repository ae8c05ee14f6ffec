"""What hangs on a linear layer goes over to the packed one, or keeps the layer as it is, and the report tells."""

from __future__ import annotations

import copy
import functools
import pickle
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.torch import SparseLinear, desparsify, load, save, sparsify  # noqa: E402
from torch_layers import pruned, random  # noqa: E402

X = random(4, 64)


def make() -> nn.Module:
    return nn.Sequential(pruned(128, 64, 0.6), nn.ReLU(), pruned(32, 128, 0.6, seed=1)).eval()


def own_forward(layer: Any) -> None:
    layer._old_forward = layer.forward
    layer.forward = types.MethodType(lambda self, x: 3 * self._old_forward(x), layer)


def twice(*given: Any) -> Any:
    """A hook: what it gets last, doubled."""
    return 2 * given[-1]


HOOKS: dict[str, Callable[[Any], Any]] = {
    "forward hooks": lambda layer: layer.register_forward_hook(twice),
    "forward hooks of keywords": lambda layer: layer.register_forward_hook(twice, with_kwargs=True),
    "forward pre-hooks": lambda layer: layer.register_forward_pre_hook(lambda *given: (2 * given[-1][0],)),
}
KEPT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "forward": (own_forward, "it has a forward of its own"),
    "compiled": (lambda layer: layer.compile(backend="eager"), "it has a _compiled_call_impl of its own"),
    "buffer": (lambda layer: layer.register_buffer("scale", X), "it has scale beside weight and bias"),
    "module": (lambda layer: layer.register_module("lora", nn.Linear(2, 2)), "it has lora beside weight and bias"),
    "parameter": (lambda layer: layer.register_parameter("g", nn.Parameter(X)), "it has g beside weight and bias"),
    "state": (lambda layer: layer.register_state_dict_pre_hook(lambda *_: None), "it has state-dict hooks"),
    "load": (lambda layer: layer.register_load_state_dict_post_hook(lambda *_: None), "it has state-dict hooks"),
    "name": (lambda layer: setattr(layer, "layout", "mine"), "its attribute layout means something else"),
    "gradient": (lambda layer: layer.weight.register_hook(lambda gradient: gradient), "its weight has gradient hooks"),
    "accumulated": (
        lambda layer: layer.weight.register_post_accumulate_grad_hook(lambda *_: None),
        "its weight has gradient hooks",
    ),
    "weight's method": (lambda layer: setattr(layer.weight, "numel", lambda: 7), "its weight has a numel of its own"),
    "weight's title": (lambda layer: setattr(layer.weight, "title", "W"), "its weight has a title of its own"),
    "old backward": (lambda layer: layer.register_backward_hook(lambda *_: None), "it has a backward hook of the old"),
    "csr": (
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach().to_sparse_csr())),
        "its weight is no matrix, but 2-dimensional and sparse_csr",
    ),
    "masked": (
        lambda layer: prune.l1_unstructured(layer, "bias", 0.3),
        "it has bias_orig, bias_mask beside weight and bias",
    ),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("back", [False, True])
def test_hooks_go_over_and_can_be_removed(hook: Callable[[Any], Any], back: bool) -> None:
    model = make()
    plain = model(X)
    handle = hook(model[0])
    wanted = model(X)
    report = sparsify(model, format="bitmap")
    assert isinstance(model[0], SparseLinear)
    assert "; keeps its forward" in report.layers[0].why
    assert "keeps" not in report.layers[1].why
    if back:
        desparsify(model)
        assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(X), wanted)
    handle.remove()
    torch.testing.assert_close(model(X), plain)


def test_backward_hooks_see_the_same_gradients() -> None:
    def gradients(model: nn.Module) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        model[2].register_full_backward_hook(lambda *given: seen.extend(given[1] + given[2]))
        model[2].register_full_backward_pre_hook(lambda *given: seen.extend(given[1]))
        sparsify(model, format="bitmap", include=packed)
        model(X.clone().requires_grad_()).square().sum().backward()
        return seen

    packed: list[str] = []
    wanted = gradients(make())
    packed = ["*"]
    found = gradients(make())
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize(("attach", "why"), KEPT.values(), ids=KEPT)
def test_layers_that_are_more_than_weight_and_bias_are_left(attach: Callable[[Any], Any], why: str) -> None:
    model = make()
    attach(model[0])
    layer, wanted = model[0], model(X)
    report = sparsify(model, format="bitmap")
    assert model[0] is layer
    assert report.layers[0].why.startswith(why)
    assert report.layers[1].packed
    torch.testing.assert_close(model(X), wanted)


def test_attributes_and_the_bias_itself_go_over() -> None:
    model = make()
    model[0].mine, model[0]._quiet = [1], 2
    bias = model[0].bias
    model[2].bias.requires_grad_(False)
    report = sparsify(model, format="bitmap")
    assert (model[0].mine, model[0]._quiet) == ([1], 2)
    assert report.layers[0].why.endswith("; keeps its mine")
    assert model[0].bias is bias
    assert not model[2].bias.requires_grad
    other = copy.deepcopy(model)
    other[0].later = "set on a packed layer"
    desparsify(other)
    assert (other[0].mine, other[0].later, hasattr(other[0], "layout")) == ([1], "set on a packed layer", False)
    assert not hasattr(other[0], "kind")
    torch.testing.assert_close(other(X), model(X))


def test_what_users_set_on_a_weight_goes_over_and_back(tmp_path: Any) -> None:
    def mark(model: nn.Module) -> None:
        model[0].weight.tensor_model_parallel, model[0].weight._quiet = True, [2]

    model = make()
    mark(model)
    report = sparsify(model, format="bitmap")
    assert report.layers[0].why.endswith("; keeps its weight.tensor_model_parallel")
    assert "keeps" not in report.layers[1].why
    weight = model[0].weight
    assert (weight.tensor_model_parallel, weight._quiet) == (True, [2])
    assert not hasattr(model[2].weight, "tensor_model_parallel")
    weight.later = "set on a packed weight"
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.bfloat16)):
        weight = other[0].weight
        assert (weight.tensor_model_parallel, weight._quiet, weight.later) == (True, [2], "set on a packed weight")
    model[0].name = "renamed"
    assert model[0].weight.title == "renamed.weight"
    save(model, tmp_path / "model.safetensors")
    desparsify(model)
    assert type(model[0].weight) is nn.Parameter
    assert vars(model[0].weight) == {"tensor_model_parallel": True, "_quiet": [2], "later": "set on a packed weight"}
    fresh = make()
    mark(fresh)
    load(fresh, tmp_path / "model.safetensors")
    assert fresh[0].weight.tensor_model_parallel is True


def test_an_optimizer_made_before_still_trains_the_biases() -> None:
    model = make()
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if name.endswith("bias")], lr=1.0)
    sparsify(model, format="bitmap")
    before = model[0].bias.detach().clone()
    model(X).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model[0].bias.detach(), before - model[0].bias.grad)
    assert model[0].bias.grad.any()


def test_a_saved_layer_takes_what_hangs_on_the_one_that_it_replaces(tmp_path: Any) -> None:
    model = make()
    sparsify(model, format="bitmap")
    save(model, tmp_path / "model.safetensors")
    other = make()
    other[0].register_forward_hook(twice)
    load(other, tmp_path / "model.safetensors")
    torch.testing.assert_close(other[0](X), 2 * model[0](X))
    own = make()
    own_forward(own[0])
    with pytest.raises(Exception, match=r"0: a packed layer was saved .* cannot be replaced: it has a forward of its"):
        load(own, tmp_path / "model.safetensors")


class Slotted:
    """Has no dict."""

    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


@pytest.mark.parametrize(
    "hold",
    [
        lambda layer: [layer],
        lambda layer: {"a": (0, layer)},
        lambda layer: layer.forward,
        lambda layer: functools.partial(layer.forward),
        lambda layer: {layer: 2.0},
        lambda layer: lambda x: 2 * layer(x),
        lambda layer: types.SimpleNamespace(parts=[Slotted(layer)]),
        weakref.ref,
    ],
    ids=["list", "dict", "method", "partial", "key", "closure", "object", "reference"],
)
def test_a_layer_that_something_else_holds_too_is_left(hold: Callable[[Any], Any], tmp_path: Any) -> None:
    model = nn.Sequential(make(), pruned(16, 32, 0.6, seed=2))
    model[1].others = hold(model[0][0])
    report = {layer.name: layer for layer in sparsify(model, format="bitmap", trainable=True)}
    assert report["0.0"].why == "1.others has it, too, which is no module"
    assert [name for name, layer in report.items() if layer.packed] == ["0.2", "1"]
    packed = nn.Sequential(make())
    sparsify(packed, format="bitmap")
    save(packed, tmp_path / "model.safetensors")
    fresh = nn.Sequential(make())
    fresh.others = hold(fresh[0][0])
    with pytest.raises(GossamerError, match="others has it, too"):
        load(fresh, tmp_path / "model.safetensors")
    assert type(fresh[0][0]) is nn.Linear


def test_mappings_that_make_what_they_give_are_not_asked() -> None:
    class Files(Mapping[str, torch.Tensor]):
        """As `accelerate` has them beside modules whose weights lie on the disk."""

        def __getitem__(self, key: str) -> torch.Tensor:
            raise AssertionError(f"{key} was read")

        def __iter__(self) -> Iterator[str]:
            return iter(["weight"])

        def __len__(self) -> int:
            return 1

    model = make()
    model[1].files = Files()
    assert all(layer.packed for layer in sparsify(model, format="bitmap"))


def test_a_forward_that_a_class_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = nn.Linear.forward
    model = make()
    monkeypatch.setattr(nn.Linear, "forward", functools.wraps(linear)(lambda self, x: 2 * linear(self, x)))
    before = model(X)
    assert {layer.why for layer in sparsify(model, format="bitmap")} == {
        "the forward of Linear is not that of its class's own file"
    }
    assert torch.equal(model(X), before)


def test_values_that_are_masked_still_learn() -> None:
    model = nn.Sequential(nn.Sequential(pruned(128, 64, 0.6, bias=False)))
    sparsify(model, format="bitmap", trainable=True)
    prune.l1_unstructured(model[0][0], "values", 0.5)
    model(X).square().sum().backward()
    assert model[0][0].values_orig.grad.abs().sum() > 0
