"""Packed bytes that others calculate with: copies are fine, averages are refused, and so is what takes them away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402
from torch.optim import swa_utils  # noqa: E402

from gossamer import GossamerError  # noqa: E402
from gossamer.torch import load, load_state_dict, save, sparsify  # noqa: E402
from torch_layers import pruned, random  # noqa: E402

AVERAGES: dict[str, Callable[[], dict[str, Any]]] = {
    "all at once": lambda: {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "one by one": lambda: {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
}
CHANGED = r"^0: its packed bytes were changed, as by an average over buffers \(AveragedModel"


def _packed(**options: Any) -> nn.Sequential:
    model = nn.Sequential(pruned(64, 96, 0.6), nn.BatchNorm1d(64))
    assert len(sparsify(model, **{"format": "bitmap", **options}).packed) == 1
    return model.eval()


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(
    "options", [{}, {"format": "dense", "weights": "int8"}, {"format": "dense"}, {"trainable": True}], ids=str
)
def test_bytes_that_were_averaged_multiply_nothing_and_are_not_saved(average: str, options: dict[str, Any]) -> None:
    model = _packed(**options)
    averaged = swa_utils.AveragedModel(model, use_buffers=True, **AVERAGES[average]())
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged(random(3, 96)), model(random(3, 96)), rtol=0, atol=0)
    averaged.update_parameters(model)
    with pytest.raises(GossamerError, match=CHANGED):
        averaged(random(3, 96))
    with pytest.raises(GossamerError, match=CHANGED):
        averaged.module.state_dict()


@pytest.mark.parametrize("options", [{}, {"trainable": True}], ids=str)
def test_averages_that_keep_equal_bytes_are_right(options: dict[str, Any]) -> None:
    model = _packed(**options)
    x = random(3, 96)
    averaged = swa_utils.AveragedModel(model, use_buffers=True)
    outputs = []
    for step in range(3):
        with torch.no_grad():
            model[0].bias.fill_(step)
            model[1].running_mean.fill_(step)
        averaged.update_parameters(model)
        outputs.append(model(x))
    torch.testing.assert_close(averaged(x), torch.stack(outputs).mean(0))
    plain = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        plain.update_parameters(model)
    torch.testing.assert_close(plain(x), model(x))


def test_bytes_of_another_layer_may_be_copied_over() -> None:
    model, other = (_packed(format="dense", weights="int8") for _ in range(2))
    with torch.no_grad():
        other[0].scales.copy_(other[0].scales.flip(0))
    with pytest.raises(GossamerError, match=CHANGED):
        other(random(3, 96))
    other = nn.Sequential(pruned(64, 96, 0.3, seed=7), nn.BatchNorm1d(64)).eval()
    sparsify(other, format="dense", weights="int8")
    model(random(3, 96))
    for ours, theirs in zip(
        (*model.parameters(), *model.buffers()), (*other.parameters(), *other.buffers()), strict=True
    ):
        ours.detach().copy_(theirs.detach())
    torch.testing.assert_close(model(random(3, 96)), other(random(3, 96)), rtol=0, atol=0)


def test_changed_bytes_are_found_when_a_state_is_loaded() -> None:
    state = copy.deepcopy(_packed(format="dense", weights="int8").state_dict())
    state["0.scales"][:64] //= 2
    with pytest.raises(GossamerError, match="packed bytes were changed"):
        _packed(format="dense", weights="int8").load_state_dict(state)
    with pytest.raises(GossamerError, match="packed bytes were changed"):
        load_state_dict(nn.Sequential(nn.Linear(96, 64), nn.BatchNorm1d(64)), state)


def test_states_without_a_checksum_are_loaded(tmp_path: Any) -> None:
    model = _packed()
    state = model.state_dict()
    state["0.layout_numbers"] = state["0.layout_numbers"][:9].clone()
    for other in (_packed(), nn.Sequential(nn.Linear(96, 64), nn.BatchNorm1d(64)).eval()):
        load_state_dict(other, state)
        torch.testing.assert_close(other(random(3, 96)), model(random(3, 96)), rtol=0, atol=0)
        save(other, tmp_path / "again.safetensors")
        load(_packed(), tmp_path / "again.safetensors")


@pytest.mark.parametrize("options", [{}, {"trainable": True}], ids=str)
def test_nothing_is_put_in_the_place_of_packed_bytes(options: dict[str, Any]) -> None:
    class Twice(nn.Module):
        def forward(self, x: Any) -> Any:
            return 2 * x

    model = _packed(**options)
    expected = model(random(3, 96))
    for name in ("values", "masks", "offsets", "layout_numbers"):
        with pytest.raises(GossamerError, match=f"^0: {name} is part of a packed weight, and nothing can be put in"):
            parametrize.register_parametrization(model[0], name, Twice())
    torch.testing.assert_close(model(random(3, 96)), expected, rtol=0, atol=0)
    parametrize.register_parametrization(model[0], "bias", Twice())
    torch.testing.assert_close(model(random(3, 96)), expected + model[0].parametrizations.bias.original)
