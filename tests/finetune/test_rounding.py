"""Rounding in the loop: code for code what `convert` stores, and a packed model that computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gossamer
from gossamer import _core
from gossamer.arch import family
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.base import Checkpoint
from gossamer.errors import GossamerError
from gossamer.packing.convert import convert
from tiny import tiny_llama

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.finetune.rounding import Rounding, rounded_types  # noqa: E402
from gossamer.nn import decoder as torch_decoder  # noqa: E402


def matrix(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, cols)).astype(np.float32)
    values *= 10.0 ** random.integers(-7, 3, (rows, 1))  # scales down to f16's subnormal ones and below
    values[random.random((rows, cols)) < 0.5] = 0
    values[1] = 0
    return values.astype(np.float32)


def rounded(rounding: Rounding, name: str, values: np.ndarray) -> np.ndarray:
    out = torch.full(values.shape, torch.nan)
    rounding.round(name, torch.from_numpy(values), out)
    return out.numpy()


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("cols", [96, 130])
def test_rounded_values_are_those_that_convert_stores(weights: str, group: int, cols: int) -> None:
    values = matrix(40, cols)
    rounding = Rounding({"layers.0.q.weight": weights}, group)
    rounding.refresh({"layers.0.q.weight": torch.from_numpy(values)})
    got = rounded(rounding, "layers.0.q.weight", values)
    np.testing.assert_array_equal(got, _core.pack(values, "dense", weights, group).unpack())
    np.testing.assert_array_equal(got, _core.pack(got, "dense", weights, group).unpack())  # and finds again


@pytest.mark.parametrize("group", [0, 32, 64])
def test_scales_that_are_held_are_found_again(group: int) -> None:
    values = matrix(40, 130)
    rounding = Rounding({"layers.0.q.weight": "int4"}, group)
    rounding.refresh({"layers.0.q.weight": torch.from_numpy(values)})
    moved = values * np.random.default_rng(3).uniform(0.5, 1.5, values.shape).astype(np.float32)
    got = rounded(rounding, "layers.0.q.weight", moved)
    np.testing.assert_array_equal(got, _core.pack(got, "dense", "int4", group).unpack())


def test_scales_are_held_until_much_better_ones_are_found() -> None:
    values = np.random.default_rng(0).standard_normal((40, 150)).astype(np.float32)
    name = "layers.0.q.weight"
    rounding = Rounding({name: "int4"}, 64)
    rounding.refresh({name: torch.from_numpy(values)})
    before = rounding.held[name].clone()
    moved = values + np.random.default_rng(1).normal(0, 0.1, values.shape).astype(np.float32)
    moved[3, 64:128] *= 8  # what is clipped
    moved[5, 128:] /= 16  # what becomes zero
    rounding.refresh({name: torch.from_numpy(moved)})
    changed = {(int(row), int(group)) for row, group in (rounding.held[name] != before).nonzero()}
    assert changed == {(3, 1), (5, 2)}
    rounding.refresh({name: torch.from_numpy(moved)}, anew=True)
    fresh = torch.from_numpy(_core.choose_scales(moved, "int4", 64).astype("f4"))
    assert torch.equal(rounding.held[name], fresh)
    assert not torch.equal(fresh, before)


def types(source: Checkpoint, weights: str, head: str = "auto") -> dict[str, str]:
    return rounded_types(family(source.config).describe(source.config), weights, head)


def test_embedding_and_head_have_a_type_of_their_own(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "model", sparsity=0.5))
    for weights in ("int8", "int4"):
        for head, expected in (("auto", "int8"), ("int8", "int8"), ("int4", "int4")):
            found = types(source, weights, head)
            assert found.pop("embed.weight") == found.pop("head.weight") == expected
            assert set(found.values()) == {weights}
    assert types(source, "stored") == {}


def test_matrices_of_an_encoder_have_those_of_blocks() -> None:
    shape = {"vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = {"model_type": "t5", **shape}
    found = rounded_types(family(config).describe(config), "int4")
    assert found["encoder.layers.0.q.weight"] == found["layers.0.q.weight"] == "int4"
    assert found["embed.weight"] == "int8"


def test_options_that_make_no_sense() -> None:
    with pytest.raises(GossamerError, match="group must be one of"):
        Rounding({}, 48)


@pytest.mark.parametrize("head", ["auto", "int4"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_rounded_model_packs_to_the_same_logits(tmp_path: Path, weights: str, head: str) -> None:
    """Trained values are stored exactly, so that with float activations the packed model computes what was trained."""
    source = open_checkpoint(tiny_llama(tmp_path / "model", sparsity=0.5))
    model = torch_decoder.load(source)
    rounding = Rounding(types(source, weights, head), 32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                rounding.refresh({name: parameter})
                rounding.round(name, parameter.clone(), parameter)
    torch_decoder.save(model, tmp_path / "rounded", source, "f32")
    convert(tmp_path / "rounded", tmp_path / "packed", weights=weights, group=32, head=head)
    packed = gossamer.load(tmp_path / "packed", activations="f32")
    for name, weight in packed.weights.items():
        np.testing.assert_array_equal(weight.unpack(), dict(model.named_parameters())[f"{name}.weight"].detach())
    ids = np.random.default_rng(0).integers(0, 300, 40)
    with torch.no_grad():
        ours = model(torch.from_numpy(ids)[None]).logits[0]
    np.testing.assert_allclose(packed.logits(ids), ours, rtol=0, atol=5e-4)
