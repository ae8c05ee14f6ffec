"""Linears of several parallel matrices, from the checkpoint to the packed folder that runs: their sum everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gossamer
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.branches import delta_name, deltas_of
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.packing.convert import convert, pack_checkpoint
from gossamer.packing.folder import read_packed
from gossamer.pruning import prune
from reference_model import ReferenceModel
from tiny import save_safetensors, tiny_config, tiny_llama, tiny_tensors, tokens

UP, Q = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"
Tensors = dict[str, NDArray[np.float32]]


def split(tensors: Tensors, module: str, count: int) -> Tensors:
    """The same with a linear cut into so many matrices of disjoint places, each mostly zeros."""
    weight = tensors[f"{module}.weight"]
    part = np.random.default_rng(count).integers(0, count, weight.shape)
    branches = {f"{module}.branches.{n}.weight": np.where(part == n, weight, np.float32(0)) for n in range(count)}
    return {name: values for name, values in tensors.items() if name != f"{module}.weight"} | branches


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "split")
    tensors = split(split(tiny_tensors(tiny_config()), UP, 2), Q, 3)
    save_safetensors(tmp_path / "split" / "model.safetensors", tensors)
    return tmp_path / "split"


@pytest.mark.parametrize("weights", ["f32", "int8", "int4"])
def test_they_are_their_sum(folder: Path, weights: str, tmp_path: Path) -> None:
    convert(folder, tmp_path / "packed", weights=weights, format="bitmap")
    packed = read_packed(tmp_path / "packed")
    up = ["layers.0.up.delta_1"]
    assert deltas_of("layers.0.up", packed.weights) == up
    assert deltas_of("layers.1.q", packed.weights) == ["layers.1.q.delta_1", "layers.1.q.delta_2"]
    assert {packed.weights[name].type for name in up} == {weights}
    assert packed.weights[up[0]].format != "dense"
    exact: dict[str, Any] = {name: weight.unpack().astype(np.float64) for name, weight in packed.weights.items()}
    for name in packed.config.linears:
        for delta in deltas_of(name, packed.weights):
            exact[name] = exact[name] + exact.pop(delta)
    expected = ReferenceModel(packed.config, {**exact, **packed.vectors}).logits(tokens())
    found = gossamer.load(tmp_path / "packed", activations="f32").logits(tokens())
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    if weights == "f32":
        dense = gossamer.load(tiny_llama(tmp_path / "dense")).logits(tokens())
        np.testing.assert_allclose(gossamer.load(folder).logits(tokens()), dense, atol=1e-4, rtol=0)


def test_inspect_shows_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json"]) == 0
    assert f'"{delta_name("layers.1.q", 2)}"' in capsys.readouterr().out


def test_the_sampler_adds_them(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
    from gossamer.nn.engine import Engine
    from gossamer.nn.sampler import Sampler

    packed = pack_checkpoint(open_checkpoint(folder), weights="f32")
    dense = pack_checkpoint(open_checkpoint(tiny_llama(tmp_path / "dense")), weights="f32")
    split_, whole = (Sampler(model, "cpu", torch.float32) for model in (packed, dense))
    parameters = dict(whole._decoder.named_parameters())
    for name, values in split_._decoder.named_parameters():
        torch.testing.assert_close(values, parameters[name])
    with pytest.raises(GossamerError, match=r"weight \S+ has parallel branches, which do not run on a GPU"):
        Engine(packed.config, packed.weights, packed.vectors, "cpu", dtype=torch.float32)


def test_what_would_lose_them_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="split: a model with parallel branches cannot be pruned"):
        prune(folder, tmp_path / "again", sparsity=0.6, windows=2, length=32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{UP}.branches.0.weight": None}, f"{UP}.branches.0.weight is missing"),
        ({f"{Q}.branches.1.weight": None}, f"{Q}.branches.1.weight is missing"),
        ({f"{UP}.weight": (160, 96)}, f"stands for {UP}.weight, which is stored as well"),
        ({f"{UP}.branches.1.weight": (160, 90)}, f"tensor {UP}.branches.1.weight has shape [160, 90]"),
        ({"model.norm.branches.0.weight": (96,), "model.norm.weight": None}, "model.norm.weight has branches"),
        ({"model.layers.0.x.branches.0.weight": (3, 3)}, "tensor model.layers.0.x.weight has no place in the model"),
        ({f"{UP}.branches.1.bias": (160,)}, f"tensor {UP}.branches.1.bias has no place in the model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_branches_that_do_not_fit(folder: Path, changes: dict[str, Any], words: str) -> None:
    tensors = split(split(tiny_tensors(tiny_config()), UP, 2), Q, 3)
    for name, shape in changes.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = np.ones(shape, np.float32)
    save_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(GossamerError) as error:
        open_checkpoint(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)
