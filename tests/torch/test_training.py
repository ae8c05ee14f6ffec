"""What is still being trained stays as it is: adapters, layers that begin as zeros, those that alone are not frozen."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.torch import SparseLinear, prune_linears, sparsify  # noqa: E402
from torch_layers import pruned, random  # noqa: E402


class LowRank(nn.Module):
    """An adapter as people write it by hand: the second matrix begins as zeros."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def trained(model: nn.Module, steps: int = 3) -> list[Tensor]:
    """Parameters that require gradients after some steps."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(random(8, 256)).square().mean().backward()
        optimizer.step()
    return learning


@pytest.mark.parametrize("options", [{}, {"format": "bitmap"}, {"weights": "f32", "min_zeros": 0.0}])
def test_an_adapter_written_by_hand_learns_beside_a_packed_layer(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LowRank(pruned(256, 256, 0.6), 128), nn.Tanh(), LowRank(pruned(256, 256, 0.7), 128))
    dense = copy.deepcopy(model)
    report = sparsify(model, **options)
    assert [layer.name for layer in report.packed] == ["0.base", "2.base"]
    why = {layer.name: layer.why for layer in report}
    assert "all zero and not frozen" in why["0.up"]
    assert "being trained" in why["0.down"]
    ours, theirs = trained(model), trained(dense)
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_integer_values_leave_what_is_trained() -> None:
    model = nn.Sequential(LowRank(pruned(256, 256, 0.6), 128))
    assert [layer.name for layer in sparsify(model, weights="int8").packed] == ["0.base"]


def test_what_is_trained_may_be_packed_trainable_but_for_zeros() -> None:
    model = nn.Sequential(LowRank(pruned(256, 256, 0.6), 256), pruned(256, 256, 0.6))
    report = sparsify(model, trainable=True)
    assert [layer.name for layer in report.packed] == ["0.base", "1"]
    assert "all zero" in next(layer for layer in report if layer.name == "0.up").why


def test_a_model_of_which_nothing_is_frozen_is_packed() -> None:
    model = nn.Sequential(pruned(256, 256, 0.6), pruned(256, 256, 1.0))
    assert [layer.name for layer in sparsify(model).packed] == ["0"]
    frozen = nn.Sequential(pruned(256, 256, 0.6), pruned(256, 256, 1.0)).requires_grad_(False)
    assert [layer.name for layer in sparsify(frozen).packed] == ["0", "1"]


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4))
    prune_linears(model, method="magnitude", sparsity=0.6)
    return model


@pytest.mark.parametrize("kind", ["lora", "dora", "modules_to_save", "ia3", "vera"])
@pytest.mark.filterwarnings("ignore")  # peft and transformers warn of each other
def test_adapters_of_peft_learn_beside_packed_layers(kind: str) -> None:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "down_proj"]
    model = peft.get_peft_model(
        llama(),
        {
            "lora": lambda: peft.LoraConfig(r=256, target_modules=targets),
            "dora": lambda: peft.LoraConfig(r=256, target_modules=targets, use_dora=True),
            "modules_to_save": lambda: peft.LoraConfig(r=8, target_modules=targets, modules_to_save=["lm_head"]),
            "ia3": lambda: peft.IA3Config(target_modules=targets, feedforward_modules=["down_proj"]),
            "vera": lambda: peft.VeraConfig(r=64, target_modules=["q_proj"]),
        }[kind](),
    )
    dense = copy.deepcopy(model)
    report = sparsify(model)
    packed = {layer.name for layer in report.packed}
    assert sum(name.endswith("base_layer") for name in packed) == {"vera": 1, "dora": 0}.get(kind, 2)
    assert sum("DoRA" in layer.why for layer in report) == (2 if kind == "dora" else 0)
    assert not any("lora_" in name or "modules_to_save" in name for name in packed)
    tokens = torch.arange(24).view(2, 12)
    learnt = []
    for one in (model, dense):
        parameters = {name: p for name, p in one.named_parameters() if p.requires_grad and "modules_to_save" in name}
        parameters |= {name: p for name, p in one.named_parameters() if p.requires_grad and "base_layer" not in name}
        optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            one(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
        learnt.append({name: parameter.detach() for name, parameter in parameters.items()})
    assert learnt[0].keys() == learnt[1].keys()
    assert learnt[0]
    for name, parameter in learnt[1].items():
        torch.testing.assert_close(learnt[0][name], parameter, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_for_inference_stays_exchangeable() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=256, target_modules=["q_proj"]), "first")
    model.add_adapter("second", peft.LoraConfig(r=256, target_modules=["q_proj"]))
    model.requires_grad_(False)
    packed = {layer.name for layer in sparsify(model, weights="int8").packed}
    assert not any("lora_" in name for name in packed)
    model.set_adapter("second")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 2
    assert all(".second." in name for name in names)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_for_a_packed_layer_is_refused() -> None:
    peft = pytest.importorskip("peft")
    model = llama()
    sparsify(model)
    assert isinstance(model.model.layers[0].self_attn.q_proj, SparseLinear)
    with pytest.raises(ValueError, match=r"SparseLinear.* is not supported"):
        peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))


@pytest.mark.filterwarnings("ignore")
def test_adapters_are_saved_loaded_and_unloaded_but_not_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=16, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits
        assert len(sparsify(model).packed) >= 5
        torch.testing.assert_close(model(input_ids=tokens).logits, wanted, rtol=1e-3, atol=1e-4)
        model.save_pretrained(tmp_path)
        dense = peft.PeftModel.from_pretrained(llama(), tmp_path)
        torch.testing.assert_close(dense(input_ids=tokens).logits, wanted)
        with pytest.raises(GossamerError, match=r"q_proj.*asks for the values of a packed weight"):
            model.merge_and_unload()
        base = model.unload()
        assert isinstance(base.model.layers[0].self_attn.q_proj, SparseLinear)
        torch.testing.assert_close(
            base(input_ids=tokens).logits, llama()(input_ids=tokens).logits, rtol=1e-3, atol=1e-4
        )


def test_a_packed_layer_that_is_to_learn_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Sequential(pruned(64, 64, 0.6)))
    sparsify(model, format="bitmap")
    model.requires_grad_(False)
    with pytest.raises(GossamerError, match=r"^0\.0: packed values do not learn"):
        model[0][0].requires_grad_()
    assert not model[0][0].bias.requires_grad
    model.requires_grad_()
    assert model[0][0].bias.requires_grad
    trainable = SparseLinear.from_dense(pruned(64, 64, 0.6), trainable=True).requires_grad_(False)
    assert trainable.requires_grad_().values.requires_grad
