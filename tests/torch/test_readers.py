"""Layers whose weights the model's own code reads stay dense, and the model is right."""

from __future__ import annotations

import functools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gossamer.torch import sparsify  # noqa: E402
from torch_layers import pruned, random  # noqa: E402

SIZE = 64
X = random(4, SIZE)


def layer(seed: int) -> nn.Linear:
    return pruned(SIZE, SIZE, 0.6, seed=seed)


def multiply(x: Tensor, module: nn.Linear) -> Tensor:
    return F.linear(x, module.weight, module.bias)


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    return wrapper


class Base(nn.Module):
    """Two layers: `read` is one whose weight is read, `called` one that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = layer(1), layer(2)
        nn.init.xavier_uniform_(self.read.weight)  # what happens when a model is made does not count
        self.exact = False

    def reset(self) -> None:
        nn.init.zeros_(self.called.weight)


class Direct(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.called(x), self.read.weight)


class Alias(Base):
    def forward(self, x: Tensor) -> Tensor:
        one, other = self.read, self.called
        weight = one.weight
        return other(x @ weight.T)


class Loop(Base):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.read])

    def forward(self, x: Tensor) -> Tensor:
        for _, module in enumerate(self.layers):
            x = torch.einsum("bi,oi->bo", x, module.weight)
        return self.called(x)


class Indexed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"a": nn.Sequential(self.read)})

    def forward(self, x: Tensor) -> Tensor:
        return self.called(F.conv1d(x[:, :, None], self.heads["a"][0].weight.unsqueeze(-1)).squeeze(-1))


class Listed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.plain = [self.read]

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) @ torch.cat([module.weight for module in self.plain])


class Helper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return multiply(self.called(x), module=self.read)


class Method(Base):
    def product(self, x: Tensor, module: nn.Linear) -> Tensor:
        return torch.addmm(module.bias, x, module.weight.t())

    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.called(x), self.read)


class Property(Base):
    @property
    def matrix(self) -> Tensor:
        return self.read.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) @ self.matrix


class Returned(Base):
    def chosen(self) -> nn.Linear:
        return self.read

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) @ self.chosen().weight.float()


class Named(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) @ getattr(self.read, "weight").abs()  # noqa: B009


class Parent(Direct):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Given(nn.Module):
    def forward(self, x: Tensor, module: nn.Linear) -> Tensor:
        return x @ module.weight


class Passed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Given()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.called(x), self.read)


class Checkpointed(Base):
    def product(self, x: Tensor) -> Tensor:
        return x @ self.read.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.product, self.called(x), use_reentrant=False)


class Switched(Base):
    def __init__(self) -> None:
        super().__init__()
        self.exact = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x)
        return x @ self.read.weight if self.exact and len(x) else self.read(x)


class Summed(Base):
    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.read.parameters():
            x = x + parameter.sum()
        return self.called(x)


class Classed(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) if isinstance(self.read, nn.Linear) else 0 * x


READING = (
    *(Direct, Alias, Loop, Indexed, Listed, Helper, Method, Property, Returned, Named, Parent, Passed, Checkpointed),
    *(Switched, Summed, Classed),
)


class Asking(Base):
    """Wants to know what the weights are, and no more."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.read.weight, Tensor) and x.dtype != self.read.weight.dtype:
            x = x.to(self.read.weight.dtype)
        if self.read.weight is None or self.read.weight.data.shape[0] != self.read.weight.size(1):
            raise ValueError
        weight = self.called.weight
        x = x.to(next(self.parameters()).device).to(next(p.dtype for p in self.parameters()))
        return self.called(self.read(x.to(self.read.weight.detach().device))).to(weight.dtype)


class Off(Base):
    """Would read a weight under other settings."""

    def forward(self, x: Tensor) -> Tensor:
        if self.exact and x.numel():
            return x @ self.read.weight
        if not self.exact and self.read is not self.called:
            x = self.called(x)
        elif x.numel():
            x = multiply(x, self.called)
        return self.read(x) if not self.training else multiply(x, self.read)


def hooked() -> nn.Module:
    model = Off()
    model.read.register_forward_hook(scaled)
    return model


def scaled(module: nn.Linear, given: tuple[Tensor], y: Tensor) -> Tensor:
    del given
    return y * module.weight.norm()


@pytest.mark.parametrize("make", [*READING, hooked], ids=lambda make: make.__name__)
def test_layers_whose_weight_is_read_stay_dense(make: Any) -> None:
    model = nn.Sequential(make()).eval()
    with torch.no_grad():
        wanted = model(X)
        report = sparsify(model, format="bitmap")
        assert {row.name.rpartition(".")[2]: row.packed for row in report}["called"]
        (reason,) = [row.why for row in report if not row.packed]
        assert reason.endswith(("reads its weight", "goes through its parameters", "asks whether it is a Linear"))
        torch.testing.assert_close(model(X), wanted)


@pytest.mark.parametrize("make", [Asking, Off])
def test_layers_whose_weight_is_not_read_are_packed(make: Any) -> None:
    model = nn.Sequential(make()).eval()
    with torch.no_grad():
        wanted = model(X)
        assert len(sparsify(model, format="bitmap").packed) == 2
        torch.testing.assert_close(model(X), wanted)


def test_the_reason_names_the_code() -> None:
    assert [row.why for row in sparsify(Direct(), format="bitmap") if not row.packed] == [
        "Direct.forward reads its weight"
    ]


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 99}
SPEECH = {"conv_dim": (16,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 8}
STATES = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99, "state_size": 8}
MODELS: dict[str, tuple[str, dict[str, Any], Tensor, list[str], int]] = {
    "mamba": ("MambaForCausalLM", STATES, torch.arange(1, 9)[None], ["dt_proj"], 6),
    "falcon mamba": ("FalconMambaForCausalLM", STATES, torch.arange(1, 9)[None], ["dt_proj"], 6),
    "bloom": (
        "BloomForCausalLM",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "slow_but_exact": True, "pretraining_tp": 2},
        torch.arange(1, 9)[None],
        ["dense", "dense_4h_to_h"],
        4,
    ),
    "bloom, fast": (
        "BloomForCausalLM",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99},
        torch.arange(1, 9)[None],
        [],
        8,
    ),
    "wavlm": (
        "WavLMModel",
        {**SMALL, **SPEECH, "num_conv_pos_embedding_groups": 2},
        random(1, 2000),
        ["k_proj", "out_proj", "q_proj", "v_proj"],
        7,
    ),
    "deberta": ("DebertaModel", SMALL, torch.arange(1, 9)[None], ["in_proj"], 6),
}


@pytest.mark.parametrize(("kind", "fields", "given", "dense", "packed"), MODELS.values(), ids=MODELS)
def test_models_of_transformers_that_read_weights(
    kind: str, fields: dict[str, Any], given: Tensor, dense: list[str], packed: int
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(torch.rand_like(parameter) > 0.6)
        wanted = model(given)[0]
        report = sparsify(model, format="bitmap")
        assert len(report.packed) == packed
        read = {row.name.rpartition(".")[2] for row in report if row.why.endswith("reads its weight")}
        assert sorted(read) == dense
        torch.testing.assert_close(model(given)[0], wanted, rtol=1e-4, atol=1e-4)


def test_detrs_map_of_attention_multiplies_with_a_convolution() -> None:
    detr = pytest.importorskip("transformers.models.detr.modeling_detr")
    torch.manual_seed(0)
    model = nn.Sequential(detr.DetrMHAttentionMap(SIZE, 4)).eval()
    queries, keys = random(1, 5, SIZE), random(1, SIZE, 3, 3, seed=2)
    with torch.no_grad():
        wanted = model[0](queries, keys)
        report = sparsify(model, format="bitmap")
        assert [(row.name, row.packed) for row in report] == [("0.q_proj", True), ("0.k_proj", False)]
        torch.testing.assert_close(model[0](queries, keys), wanted)
