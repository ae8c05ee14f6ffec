from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkout import ROOT

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.torch import SparseLinear, desparsify, load, load_state_dict, save, sparsify  # noqa: E402
from torch_layers import Tied, pruned  # noqa: E402

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, gossamer.torch
from torch_layers import Tied
model = gossamer.torch.load(Tied(seed=99), sys.argv[2])
torch.save(model(torch.arange(10)), sys.argv[3])
"""


@pytest.mark.parametrize(
    "options", [{}, {"weights": "bf16"}, {"weights": "int8", "activations": "f32"}, {"trainable": True}]
)
def test_a_saved_model_gives_the_same_in_a_model_built_anew(tmp_path: Path, options: dict[str, str]) -> None:
    model = Tied()
    assert len(sparsify(model, **options).packed) == 2
    expected = model(torch.arange(10))
    save(model, tmp_path / "model.safetensors")
    for other in (Tied(seed=5), sparsified(Tied(seed=6)), copy.deepcopy(model)):
        assert load(other, tmp_path / "model.safetensors") is other
        assert torch.equal(other(torch.arange(10)), expected)
        assert other.head.weight is other.embed.weight
        assert other.steps == 0
        assert other.up.layout == model.up.layout
    assert load(other, tmp_path / "model.safetensors").up.trainable == bool(options.get("trainable"))


def sparsified(model: nn.Module) -> nn.Module:
    sparsify(model)
    return model


def test_a_saved_model_gives_the_same_in_a_new_process(tmp_path: Path) -> None:
    model = sparsified(Tied())
    save(model, tmp_path / "model.safetensors")
    arguments = [str(ROOT / "tests" / "support"), str(tmp_path / "model.safetensors"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "out.pt"), model(torch.arange(10)))


def test_a_model_on_the_meta_device_gets_everything_from_the_file(tmp_path: Path) -> None:
    model = sparsified(Tied())
    save(model, tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = Tied(seed=3)
        empty.head.weight = empty.embed.weight
    load(empty, tmp_path / "model.safetensors")
    assert not any(tensor.is_meta for tensor in empty.state_dict().values())
    assert torch.equal(empty(torch.arange(10)), model(torch.arange(10)))


def test_loaded_tensors_may_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(sparsified(Tied()), path)
    before = path.read_bytes()
    model = load(Tied(seed=2), path)
    with torch.no_grad():
        model.up.bias.add_(1)
        model.up.values.zero_()
        model.embed.weight.add_(1)
    assert path.read_bytes() == before


def test_what_was_one_tensor_is_two_where_the_model_has_two(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.one, self.other = nn.Embedding(40, 32), nn.Linear(32, 40, bias=False)
            self.register_buffer("mean", torch.ones(3))
            self.register_buffer("spread", torch.ones(3))
            if tied:
                self.other.weight, self.spread = self.one.weight, self.mean

    saved = Both(tied=True)
    save(saved, tmp_path / "model.safetensors")
    model = load(Both(tied=False), tmp_path / "model.safetensors")
    with torch.no_grad():
        model.other.weight += 1
        model.mean += 1
    assert torch.equal(model.one.weight, saved.one.weight)
    assert torch.equal(model.other.weight, saved.one.weight + 1)
    assert torch.equal(model.spread, saved.mean)
    tied = load(Both(tied=True), tmp_path / "model.safetensors")
    assert tied.one.weight is tied.other.weight


def test_the_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = sparsified(Tied())
    save(model, tmp_path / "model.safetensors")
    ours = safetensors.load_file(tmp_path / "model.safetensors")
    state = model.state_dict()
    assert set(state) - set(ours) == {"head.weight"}
    assert all(torch.equal(ours[name], state[name]) for name in state if name in ours)
    safetensors.save_model(model, str(tmp_path / "theirs.safetensors"))
    other = load_state_dict(Tied(seed=4), safetensors.load_file(tmp_path / "theirs.safetensors"), strict=False)
    assert torch.equal(other(torch.arange(10)), model(torch.arange(10)))


def test_state_dicts_go_through_torch_save(tmp_path: Path) -> None:
    model = sparsified(Tied())
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = load_state_dict(Tied(seed=4), torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(torch.arange(10)), model(torch.arange(10)))
    assert other.up.values.data_ptr() != model.up.values.data_ptr()


@pytest.mark.parametrize("how", ["torch", "safetensors", "hub", "accelerate"])
def test_a_dense_model_does_not_take_a_packed_state_for_none(tmp_path: Path, how: str) -> None:
    """Loaders that leave out what they do not know would leave its layers with the values that they had."""
    safetensors = pytest.importorskip("safetensors.torch")
    hub = pytest.importorskip("huggingface_hub")
    accelerate = pytest.importorskip("accelerate")

    class Model(Tied, hub.PyTorchModelHubMixin):  # type: ignore[misc]
        pass

    model, dense = sparsified(Model()), Model(seed=4)
    safetensors.save_model(model, str(tmp_path / "model.safetensors"), {"format": "pt"})
    with pytest.raises((RuntimeError, ValueError), match=r"shape torch\.Size\(\[10\]\)"):
        {
            "torch": lambda: dense.load_state_dict(model.state_dict(), strict=False),
            "safetensors": lambda: safetensors.load_model(dense, tmp_path / "model.safetensors", strict=False),
            "hub": lambda: Model.from_pretrained(tmp_path),
            "accelerate": lambda: accelerate.load_checkpoint_in_model(dense, tmp_path),
        }[how]()


def test_a_state_without_what_dense_layers_stumble_over_is_loaded() -> None:
    model = sparsified(Tied())
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "up.weight"}
    assert len(state) < len(model.state_dict())
    for other in (load_state_dict(Tied(seed=4), state), sparsified(Tied(seed=5))):
        other.load_state_dict(state)
        assert torch.equal(other(torch.arange(10)), model(torch.arange(10)))


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_is_copied_unless_it_is_to_be_taken(assign: bool) -> None:
    state = sparsified(Tied()).state_dict()
    other = load_state_dict(Tied(seed=4), state, assign=assign)
    shared = [
        key
        for key in ("values", *other.up.layout.index)
        if getattr(other.up, key).data_ptr() == state[f"up.{key}"].data_ptr()
    ]
    assert bool(shared) == assign


def test_an_optimizer_keeps_its_parameters_when_a_state_is_restored() -> None:
    layer = SparseLinear.from_dense(pruned(64, 48), trainable=True)
    state = copy.deepcopy(layer.state_dict())
    values = layer.values
    with torch.no_grad():
        values.zero_()
    layer.load_state_dict(state)
    assert layer.values is values
    assert torch.equal(values, state["values"])


def test_nothing_changes_where_a_state_does_not_fit() -> None:
    state = nn.Sequential(SparseLinear.from_dense(pruned(50, 70))).state_dict()
    for model, words in (
        (nn.Sequential(nn.Linear(71, 50)), "0: the saved layer is 50 x 70, the model's 50 x 71"),
        (nn.Sequential(nn.LayerNorm(70)), "0: a packed layer was saved under this name, and the model has a LayerNorm"),
        (nn.Sequential(), "0: a packed layer was saved under this name, and the model has none"),
    ):
        kinds = [type(layer) for layer in model]
        with pytest.raises(ValueError, match=words):
            load_state_dict(model, state)
        assert [type(layer) for layer in model] == kinds
    del state["0.masks"]
    with pytest.raises(ValueError, match="0: stream 'masks' is missing"):
        load_state_dict(nn.Sequential(nn.Linear(70, 50)), state)
    other = SparseLinear.from_dense(pruned(50, 71), name="fc")
    with pytest.raises(ValueError, match="the saved layer is 50 x 70, this one 50 x 71"):
        other.load_state_dict(SparseLinear.from_dense(pruned(50, 70)).state_dict())


def test_files_that_are_broken_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(sparsified(Tied()), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(GossamerError, match=r"model\.safetensors: truncated"):
        load(Tied(), path)
    with pytest.raises(GossamerError, match=r"other\.safetensors"):
        load(Tied(), tmp_path / "other.safetensors")
    path.write_bytes(whole)
    with pytest.raises(GossamerError, match=r"model\.safetensors: .*up"):
        load(nn.Sequential(), path)


def test_states_of_unknown_versions_are_refused() -> None:
    state = nn.Sequential(SparseLinear.from_dense(pruned(50, 70))).state_dict()
    state["0.layout_numbers"] = state["0.layout_numbers"].clone()
    state["0.layout_numbers"][0] = 7
    with pytest.raises(ValueError, match="not one that this version of gossamer knows"):
        load_state_dict(nn.Sequential(nn.Linear(70, 50)), state)


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(pruned(4, 4))
    model.register_buffer("odd", torch.zeros(3, dtype=torch.complex64))
    for bad, words in (
        (model, "odd is of type torch.complex64"),
        (nn.Linear(3, 3, device="meta"), "weight is no tensor"),
    ):
        with pytest.raises(GossamerError, match=words):
            save(bad, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stream", ["masks", "offsets", "values"])
@pytest.mark.parametrize("into", [Tied, lambda seed: sparsified(Tied(seed=seed))])
def test_streams_that_contradict_each_other_are_refused_before_anything_changes(
    tmp_path: Path, stream: str, into: Callable[..., nn.Module]
) -> None:
    model = sparsified(Tied())
    if stream == "values":
        model.up.values = model.up.values[:64].clone()
    else:
        getattr(model.up, stream).fill_(255)
    model.up.layout_numbers[-1] = 0  # without a checksum, which would tell sooner
    save(model, tmp_path / "model.safetensors")
    other = into(seed=5)
    before = other(torch.arange(10))
    with pytest.raises(GossamerError, match=rf"model\.safetensors: up: stream '{stream}'|model\.safetensors: up: .*"):
        load(other, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="up: "):
        load_state_dict(other, model.state_dict())
    assert torch.equal(other(torch.arange(10)), before)
    with pytest.raises((ValueError, RuntimeError), match="up"):
        sparsified(Tied(seed=5)).load_state_dict(model.state_dict())


class Rotary(Tied):
    """Has a buffer that no state holds, as the frequencies of rotary embeddings."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.register_buffer("inv_freq", torch.arange(256.0), persistent=False)


def test_a_buffer_that_no_state_holds_must_have_values(tmp_path: Path) -> None:
    model = sparsified(Rotary())
    save(model, tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = Rotary()
    with pytest.raises(GossamerError, match="inv_freq: on device meta, which has no values"):
        load(empty, tmp_path / "model.safetensors")
    assert type(empty.up) is nn.Linear
    empty.inv_freq = torch.arange(256.0)
    assert torch.equal(load(empty, tmp_path / "model.safetensors")(torch.arange(10)), model(torch.arange(10)))
    moved = copy.deepcopy(model).to("meta")
    moved.inv_freq = torch.arange(256.0)
    load(moved, tmp_path / "model.safetensors")
    assert torch.equal(moved(torch.arange(10)), model(torch.arange(10)))
    assert torch.equal(moved.up.to_dense().weight, model.up.to_dense().weight)
    assert moved.up.weight.device.type == "cpu"


def test_a_state_that_is_assigned_brings_its_type() -> None:
    for assign, dtype in ((True, torch.float16), (False, torch.float32)):
        other = sparsified(Tied(seed=4))
        other.load_state_dict(sparsified(Tied()).half().state_dict(), assign=assign)
        assert (other.up.bias.dtype, other.up.weight.dtype, other.up.to_dense().weight.dtype) == (dtype, dtype, dtype)


def test_going_back_with_a_mask_says_so() -> None:
    model = sparsified(Tied())
    prune.l1_unstructured(model.up, "bias", 0.5)
    expected = model(torch.arange(10))
    with pytest.raises(GossamerError, match="up: it has bias_orig, bias_mask beside its own tensors: make that perm"):
        desparsify(model)
    assert torch.equal(model(torch.arange(10)), expected)
    prune.remove(model.up, "bias")
    bias = model.up.bias.detach().clone()
    assert desparsify(model) == 2
    assert torch.equal(model.up.bias, bias)


class Negative(nn.Module):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return -tensor


def test_a_bias_may_be_computed_from_another() -> None:
    model, dense, x = sparsified(Tied()), Tied(), torch.ones(2, 256)
    for one in (model, dense):
        parametrize.register_parametrization(one.up, "bias", Negative())
    for one in (model, copy.deepcopy(model)):
        torch.testing.assert_close(one.up(x), dense.up(x))
    desparsify(model)
    torch.testing.assert_close(model.up(x), dense.up(x))
