from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from gossamer.errors import GossamerError
from gossamer.pruning import Target, admm
from gossamer.torch import prune_linears, sparsify

COLS = 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(COLS, 40), nn.Linear(40, COLS)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.drop(self.up(x))))


class Model(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, COLS)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(COLS, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.embed(x) * scale
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 16, 8, generator=generator) for _ in range(2)]


def zeros(weight: Tensor) -> float:
    return float((weight == 0).double().mean())


def gram(rows: list[Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return sum((x.reshape(-1, x.shape[-1]).T @ x.reshape(-1, x.shape[-1])).double() for x in rows).numpy()


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "admm"])
def test_blocks_get_the_zeros_asked_for_and_nothing_else_changes(
    model: Model, batches: list[Tensor], method: str
) -> None:
    outside = [model.embed.weight.clone(), model.head.weight.clone()]
    reached = prune_linears(model, batches, sparsity=0.5, method=method)
    names = [f"blocks.{block}.{linear}" for block in (0, 1) for linear in ("up", "down")]
    assert list(reached) == names
    for name in names:
        assert reached[name] == zeros(model.get_submodule(name).weight) == 0.5
    assert torch.equal(model.embed.weight, outside[0])
    assert torch.equal(model.head.weight, outside[1])
    assert hooks(model) == 0


def test_each_block_is_pruned_on_the_outputs_of_the_pruned_ones(model: Model, batches: list[Tensor]) -> None:
    twin = Model()
    twin.load_state_dict(model.state_dict())
    twin.eval()
    with torch.no_grad():
        hidden = [twin.embed(batch) for batch in batches]
        for block in twin.blocks:
            inner = [torch.relu(block.up(x)) for x in hidden]
            for linear, rows in ((block.up, hidden), (block.down, inner)):
                pruned = admm(linear.weight.numpy(), gram(rows), Target.parse(0.5, None))
                linear.weight.copy_(torch.from_numpy(pruned))
            hidden = [block(x) for x in hidden]
    prune_linears(model, batches, sparsity=0.5)
    for name, weight in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)


def test_calibrated_outputs_are_nearer_than_those_of_magnitude(model: Model, batches: list[Tensor]) -> None:
    model.eval()
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(batches[0])
    lost = {}
    for method in ("magnitude", "admm"):
        model.load_state_dict(dense)
        prune_linears(model, batches, sparsity=0.5, method=method)
        with torch.no_grad():
            lost[method] = float((model(batches[0]) - wanted).norm())
    assert lost["admm"] < lost["magnitude"]


def test_patterns_and_types(model: Model, batches: list[Tensor]) -> None:
    model.bfloat16()
    prune_linears(model, [batch.bfloat16() for batch in batches], pattern=(2, 4))
    for block in model.blocks:
        for linear in (block.up, block.down):
            assert linear.weight.dtype == torch.bfloat16
            assert int((linear.weight.reshape(-1, 4) != 0).sum(1).max()) == 2


def test_what_is_zero_stays_zero(model: Model, batches: list[Tensor]) -> None:
    prune_linears(model, sparsity=0.6, method="magnitude")
    gone = model.blocks[0].up.weight == 0
    prune_linears(model, batches, sparsity=0.3)
    assert torch.equal(model.blocks[0].up.weight == 0, gone)


def test_excluded_layers_stay(model: Model, batches: list[Tensor]) -> None:
    reached = prune_linears(model, batches, sparsity=0.5, exclude=["*.down", "blocks.1.u?"])
    assert list(reached) == ["blocks.0.up"]
    assert zeros(model.blocks[1].up.weight) == 0


def test_a_model_without_lists_is_one_block(batches: list[Tensor]) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert prune_linears(model, batches, sparsity=0.25) == {"0": 0.25, "2": 0.25}
    lone = nn.Linear(8, 16)
    assert prune_linears(lone, batches, sparsity=0.25) == {"": 0.25}


def test_conv1d_is_the_transposed_linear(batches: list[Tensor]) -> None:
    from transformers.pytorch_utils import Conv1D

    conv, linear = Conv1D(12, 8), nn.Linear(8, 12)
    linear.weight.data = conv.weight.data.T.clone()
    prune_linears(nn.Sequential(conv), batches, sparsity=0.5)
    prune_linears(nn.Sequential(linear), batches, sparsity=0.5)
    assert torch.equal(conv.weight.T, linear.weight)


def test_a_shared_weight_is_pruned_once_for_the_inputs_of_all(batches: list[Tensor]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    with torch.no_grad():
        expected = admm(
            model[0].weight.numpy().copy(),
            gram([rows for batch in batches for rows in (batch, torch.tanh(model[0](batch)))]),
            Target.parse(0.5, None),
        )
    assert prune_linears(model, batches, sparsity=0.5) == {"0": 0.5}
    torch.testing.assert_close(model[0].weight.detach(), torch.from_numpy(expected), rtol=0, atol=0)
    assert model[2].weight is model[0].weight


class Backwards(Model):
    """Declares its blocks in the other order, and calls the first one twice."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.embed(x) * scale
        for index in (1, 1, 0):
            x = self.blocks[index](x)
        return self.head(x)


def test_blocks_are_pruned_in_the_order_of_their_calls(batches: list[Tensor]) -> None:
    torch.manual_seed(0)
    model = Backwards().eval()
    twin = Backwards().eval()
    twin.load_state_dict(model.state_dict())
    assert list(prune_linears(model, batches, sparsity=0.5, exclude=["*.down"])) == ["blocks.1.up", "blocks.0.up"]
    with torch.no_grad():
        first = [twin.embed(batch) for batch in batches]
        rows = [x for batch in first for x in (batch, twin.blocks[1](batch))]
        expected = admm(twin.blocks[1].up.weight.numpy(), gram(rows), Target.parse(0.5, None))
    torch.testing.assert_close(model.blocks[1].up.weight.detach(), torch.from_numpy(expected), rtol=0, atol=0)


def test_batches_are_passed_as_what_they_are(model: Model, batches: list[Tensor]) -> None:
    results = []
    for run, pack in (
        (None, lambda x: {"x": x, "scale": 2.0}),
        (None, lambda x: (x, 2.0)),
        (lambda model, x: model(x, scale=2.0), lambda x: x),
    ):
        twin = Model()
        twin.load_state_dict(model.state_dict())
        prune_linears(twin, [pack(batch) for batch in batches], sparsity=0.5, forward=run)
        results.append(twin.blocks[1].down.weight)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_modes_are_kept_and_progress_is_told(model: Model, batches: list[Tensor]) -> None:
    model.blocks[0].eval()
    steps: list[tuple[int, int]] = []
    prune_linears(model, batches, sparsity=0.5, progress=lambda done, total, _: steps.append((done, total)))
    assert [module.training for module in (model, *model.blocks)] == [True, False, True]
    assert steps == [(0, 2), (1, 2), (2, 2)]


def test_bad_input_is_named(model: Model, batches: list[Tensor]) -> None:
    with pytest.raises(GossamerError, match="either a sparsity or an N:M pattern"):
        prune_linears(model, batches)
    with pytest.raises(ValueError, match=r"method must be one of magnitude, .*got 'guess'"):
        prune_linears(model, batches, sparsity=0.5, method="guess")
    with pytest.raises(ValueError, match="'admm' measures the inputs of layers and needs at least one batch"):
        prune_linears(model, sparsity=0.5)
    with pytest.raises(ValueError, match=r"blocks\.0\.up: the inputs measured in calibration are not finite"):
        prune_linears(model, [batches[0] * float("inf")], sparsity=0.5)
    with pytest.raises(ValueError, match=r"blocks\.0\.up: no batch reaches this layer"):
        prune_linears(model, batches, sparsity=0.5, forward=lambda model, batch: model.embed(batch))
    assert zeros(model.blocks[0].up.weight) == 0
    model.blocks[1].down.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.1\.down: the weight has NaN or infinite values"):
        prune_linears(model, batches, sparsity=0.5)
    assert hooks(model) == 0


class Pairs(torch.utils.data.Dataset[Tensor]):
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Tensor:
        return self.rows[place]


@pytest.mark.parametrize("once", [False, True])
def test_batches_may_be_whatever_can_be_iterated(model: Model, once: bool) -> None:
    rows = torch.randn(6, 16, 8, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(Pairs(rows), batch_size=3)
    other = copy.deepcopy(model)
    found = prune_linears(model, iter(loader) if once else loader, sparsity=0.5, method="sparsegpt")
    assert found == prune_linears(other, [rows[:3], rows[3:]], sparsity=0.5, method="sparsegpt")
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize(
    "computed",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ],
)
def test_layers_with_computed_weights_are_refused_or_excluded(
    model: Model, batches: list[Tensor], computed: Any, method: str
) -> None:
    computed(model.blocks[1].up)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"^blocks\.1\.up: its weight is computed from others .* or exclude the layer$"
    ):
        prune_linears(model, batches, sparsity=0.5, method=method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    found = prune_linears(model, batches, sparsity=0.5, method=method, exclude="*.1.up")
    assert sorted(found) == ["blocks.0.down", "blocks.0.up", "blocks.1.down"]
    assert abs(zeros(model.blocks[1].down.weight) - 0.5) < 0.01


def test_a_masked_layer_can_be_pruned_when_the_mask_is_permanent(model: Model) -> None:
    prune.l1_unstructured(model.blocks[0].up, "weight", 0.3)
    prune.remove(model.blocks[0].up, "weight")
    assert abs(prune_linears(model, sparsity=0.5, method="magnitude")["blocks.0.up"] - 0.5) < 0.01


def test_what_are_no_batches_and_no_values(model: Model, batches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="batches must be a list of inputs, got a single mapping"):
        prune_linears(model, {"x": batches[0]}, sparsity=0.5)
    with pytest.raises(ValueError, match=r"blocks\.0\.up: its weight is on device meta"):
        prune_linears(model.to("meta"), sparsity=0.5, method="magnitude")


def test_inputs_that_are_given_by_name_are_measured(batches: list[Tensor]) -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(batches[0].shape[-1], 8))
    other = copy.deepcopy(one)
    other.forward = lambda x: other[0](input=x)  # type: ignore[method-assign]
    assert prune_linears(other, batches, sparsity=0.5) == prune_linears(one, batches, sparsity=0.5)
    assert torch.equal(one[0].weight, other[0].weight)


def test_nothing_to_prune_is_told(batches: list[Tensor]) -> None:
    packed = nn.Sequential(nn.Linear(256, 256))
    sparsify(packed, weights="int8")
    for model in (nn.Sequential(nn.Conv1d(4, 4, 1)), packed):
        with pytest.raises(ValueError, match="no linear layer to prune"):
            prune_linears(model, batches, sparsity=0.5)


def test_options_of_another_kind_are_refused_by_name(model: Model, batches: list[Tensor]) -> None:
    for call, words in (
        (lambda: prune_linears(model, batches, sparsity="0.5"), "sparsity must be a number or None, got '0.5'"),  # type: ignore[arg-type]
        (lambda: sparsify(model, min_zeros=True), "min_zeros must be a number or None, got True"),
        (lambda: sparsify(model, trainable="no"), "trainable must be true or false, got 'no'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(GossamerError, match=words):
            call()


def test_a_weight_that_an_embedding_has_too_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.inner(self.embed(ids)))

    model = Tied()
    before = model.embed.weight.detach().clone()
    assert prune_linears(model, [torch.arange(12)], sparsity=0.5, method="wanda") == {"inner": 0.5}
    assert torch.equal(model.embed.weight, before)
    assert caplog.messages == ["head: stays as it is, since its weight is that of embed.weight, too"]
    assert list(prune_linears(nn.Linear(8, 8), [torch.ones(2, 8)], sparsity=0.5).values()) == [0.5]


@pytest.mark.filterwarnings("ignore")  # peft and transformers warn of each other
def test_adapters_stay_as_they_are(model: Model, batches: list[Tensor]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["up"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    before = {name: values.clone() for name, values in adapted.state_dict().items() if "lora" in name}
    found = prune_linears(adapted, batches, sparsity=0.5, method="wanda")
    assert sorted(name.rpartition("blocks.")[2] for name in found) == [
        "0.down", "0.up.base_layer", "1.down", "1.up.base_layer",
    ]  # fmt: skip
    assert len(before) == 4
    assert all(torch.equal(adapted.state_dict()[name], values) for name, values in before.items())


@pytest.mark.parametrize("fused", [True, False])
def test_attention_with_padding_is_pruned_outside_of_its_fused_path(fused: bool) -> None:
    """There `nn.TransformerEncoder` nests its inputs, and layers with hooks cannot read them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    padding = torch.zeros(3, 10, dtype=torch.bool)
    padding[1:, 6:] = True
    batch = {"src": torch.randn(3, 10, 16), "src_key_padding_mask": padding}
    expected = copy.deepcopy(model)
    for block in expected.layers:
        seen: dict[nn.Module, Tensor] = {}
        linears = (block.linear1, block.linear2)
        hooked = [
            each.register_forward_pre_hook(lambda each, x, seen=seen: seen.update({each: x[0]})) for each in linears
        ]
        expected(**batch)  # with gradients: nothing is fused
        for linear, hook in zip(linears, hooked, strict=True):
            hook.remove()
            scores = (linear.weight * seen[linear].flatten(0, 1).norm(dim=0)).abs().detach()
            linear.weight.data.scatter_(1, scores.argsort(1)[:, : scores.shape[1] // 2], 0.0)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        found = prune_linears(model, [batch], sparsity=0.5, method="wanda")
        assert torch.backends.mha.get_fastpath_enabled() == fused
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert found == {f"layers.{layer}.linear{which}": 0.5 for layer in range(2) for which in (1, 2)}
    for name, weight in expected.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name] == 0, weight == 0)


def test_matrices_of_blocks_that_are_no_linear_layers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in range(2))
    model = nn.ModuleDict({"outside": nn.MultiheadAttention(16, 2), "blocks": blocks})
    before = model.get_parameter("blocks.0.self_attn.in_proj_weight").detach().clone()
    assert "blocks.0.linear1" in prune_linears(model, sparsity=0.5, method="magnitude")
    assert torch.equal(model.get_parameter("blocks.0.self_attn.in_proj_weight"), before)
    (told,) = caplog.messages
    assert told.startswith("attention projections (6,144 bytes in 2 tensors, as blocks.0.self_attn.in_proj_weight)")
    assert told.endswith("of the blocks stay as they are: only linear layers are pruned")
