from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer import _core
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.folders import new_folder
from gossamer.formats import FORMATS, TYPES
from gossamer.packing import convert as convert_module
from gossamer.packing import matrix
from gossamer.packing.convert import convert, pack_checkpoint
from gossamer.packing.folder import PackedModel, read_packed
from gossamer.packing.planner import Machine
from gossamer.safetensors_io import SafetensorsWriter
from tiny import save_safetensors, tiny_config, tiny_llama, tiny_tensors

append = SafetensorsWriter._append
BLOCK = ("q", "k", "v", "o", "gate", "up", "down")


def pack(path: Path, *, sparsity: float = 0.5, dtype: str = "f32", tied: bool = False, **options: Any) -> PackedModel:
    folder = tiny_llama(path / "m", sparsity=sparsity, dtype=dtype, tie_word_embeddings=tied)
    return pack_checkpoint(open_checkpoint(folder), **options)


def kinds(model: PackedModel) -> dict[str, set[str]]:
    """Types of the values of embedding, head and blocks."""
    return {
        part: {weight.type for name, weight in model.weights.items() if name.split(".")[0] == part}
        for part in ("embed", "head", "layers")
    }


@pytest.mark.parametrize(
    ("options", "block", "head"),
    [
        ({}, "int8", "int8"),
        ({"weights": "int8"}, "int8", "int8"),
        ({"weights": "int4"}, "int4", "int8"),
        ({"weights": "int4", "head": "int4"}, "int4", "int4"),
        ({"weights": "int4", "head": "f16"}, "int4", "f16"),
        ({"weights": "f32"}, "f32", "f32"),
        ({"weights": "bf16", "head": "int8"}, "bf16", "int8"),
        ({"weights": "stored"}, "f32", "f32"),
    ],
)
def test_types(tmp_path: Path, options: dict[str, Any], block: str, head: str) -> None:
    assert kinds(pack(tmp_path, **options)) == {"embed": {head}, "head": {head}, "layers": {block}}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_stored_types_are_kept_without_loss(tmp_path: Path, dtype: str) -> None:
    model = pack(tmp_path, dtype=dtype, weights="stored")
    assert kinds(model)["layers"] == {dtype}
    checkpoint = open_checkpoint(tmp_path / "m")
    for name, stored in (("layers.1.down", "model.layers.1.mlp.down_proj.weight"), ("head", "lm_head.weight")):
        np.testing.assert_array_equal(model.weights[name].unpack(), checkpoint.tensor(stored))
    np.testing.assert_array_equal(model.vectors["norm"], checkpoint.tensor("model.norm.weight"))


def test_integers_round_within_half_a_step(tmp_path: Path) -> None:
    model = pack(tmp_path, weights="int8", group=32)
    values = open_checkpoint(tmp_path / "m").tensor("model.layers.0.mlp.up_proj.weight")
    weight = model.weights["layers.0.up"]
    assert (weight.group, weight.format) == (32, "bitmap")
    codes, scales = weight.codes()
    steps = np.repeat(scales.astype(np.float32), 32, axis=1)
    error = np.abs(weight.unpack() - values)
    # Half a step, and what the scale lost in its own rounding to f16: at most 127 * 2^-11 steps.
    assert (error <= steps * (0.5 + 127 * 2**-11)).all()
    assert (weight.unpack()[values == 0] == 0).all()
    assert codes.shape == values.shape


def test_formats_follow_the_zeros(tmp_path: Path) -> None:
    for sparsity, expected in ((0.0, "dense"), (0.5, "bitmap"), (0.99, "csr")):
        model = pack(tmp_path / str(sparsity), sparsity=sparsity)
        formats = {weight.format for name, weight in model.weights.items() if name.startswith("layers")}
        assert formats == {expected}
        assert model.weights["embed"].format == model.weights["head"].format == "dense"
        assert model.reasons.keys() == model.weights.keys()
        assert f"{100 - 100 * model.weights['layers.0.q'].nnz / 96 / 96:.1f}% zeros" in model.reasons["layers.0.q"]


@pytest.mark.parametrize("format", ["dense", "bitmap", "csr"])
def test_formats_that_were_asked_for(tmp_path: Path, format: str) -> None:
    model = pack(tmp_path, format=format)
    assert {weight.format for name, weight in model.weights.items() if name.startswith("layers")} == {format}
    reference = pack(tmp_path, format="dense")
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(weight.unpack(), reference.weights[name].unpack())


def pruned_2_4(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    groups = values.reshape(len(values), -1, 4).copy()
    groups[np.abs(groups).argsort(2).argsort(2) < 2] = 0
    return groups.reshape(values.shape)


def test_patterns_are_packed_as_nm_and_the_others_fall_back_with_a_note(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 192}  # whole blocks: nm stores the padding of the others
    folder = tiny_llama(tmp_path / "m", **sizes)
    tensors = tiny_tensors(tiny_config(**sizes))
    for name, values in tensors.items():
        if "layers.0" in name and "_proj" in name:
            tensors[name] = pruned_2_4(values)
    save_safetensors(folder / "model.safetensors", tensors)
    for options in ({}, {"format": "nm"}):
        model = pack_checkpoint(open_checkpoint(folder), weights="bf16", **options)
        for linear in BLOCK:
            assert model.weights[f"layers.0.{linear}"].format == "nm"
            assert model.weights[f"layers.0.{linear}"].pattern == (2, 4)
            assert model.weights[f"layers.1.{linear}"].format == ("bitmap" if options else "dense")
    assert "so bitmap instead of nm" in model.reasons["layers.1.q"]


def test_the_same_values_give_the_same_logits_in_every_format(tmp_path: Path) -> None:
    tokens = np.arange(50, dtype=np.int32)
    logits = []
    for format_ in ("dense", "bitmap", "csr", "nm"):
        model = pack(tmp_path, weights="f32", format=format_, sparsity=0.8)
        decoder = _core.Decoder(model.config.to_dict(), model.weights, model.vectors, activations="f32")
        logits.append(decoder.step([(0, tokens)], all_logits=True))
    for other in logits[1:]:
        assert np.abs(other - logits[0]).max() < 5e-4


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for number, overrides in enumerate(
        (
            {},
            {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
            {"rope_theta": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        )
    ):
        folder = tiny_llama(tmp_path / str(number), sparsity=0.5, shards=2, **overrides)
        model = pack_checkpoint(open_checkpoint(folder), weights="stored")
        decoder = _core.Decoder(model.config.to_dict(), model.weights, model.vectors, activations="f32")
        tokens = np.random.default_rng(number).integers(0, 320, 100)
        got = decoder.step([(0, tokens.astype(np.int32))], all_logits=True)
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        with torch.no_grad():
            expected = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
        assert np.abs(got - expected).max() < 5e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "int2"}, "weights must be one of auto, stored, f32, bf16, f16, int8, int4, got 'int2'"),
        ({"head": "x"}, "head must be one of"),
        ({"format": "coo"}, "format must be one of auto, dense, bitmap, csr, nm, got 'coo'"),
        ({"group": 48}, "group must be one of 0, 32, 64, 128, got 48"),
    ],
)
def test_unknown_options(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GossamerError, match=words):
        pack(tmp_path, **options)


def spoiled(tmp_path: Path, value: float) -> Path:
    folder = tiny_llama(tmp_path / "m")
    tensors = tiny_tensors(tiny_config())
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 5] = value
    save_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_integers_refuse_what_is_not_finite(tmp_path: Path, value: float, weights: str) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    with pytest.raises(GossamerError, match=f"m: tensor {name}: NaN or infinite values cannot be stored as {weights}"):
        convert(spoiled(tmp_path, value), tmp_path / "packed", weights=weights)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("weights", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("format", ["dense", "bitmap", "csr"])
def test_floats_keep_what_is_not_finite(tmp_path: Path, value: float, weights: str, format: str) -> None:
    model = pack_checkpoint(open_checkpoint(spoiled(tmp_path, value)), weights=weights, format=format)
    np.testing.assert_equal(model.weights["layers.1.v"].unpack()[3, 5], np.float32(value))


def test_values_beyond_f16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match=r"v_proj\.weight: values beyond 65504 cannot be stored as f16"):
        pack_checkpoint(open_checkpoint(spoiled(tmp_path, 1e6)), weights="f16")


def test_convert_writes_what_was_packed_and_reports_it(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", sparsity=0.5)
    steps: list[tuple[int, int, str]] = []
    report = convert(folder, tmp_path / "packed", weights="int4", progress=lambda *step: steps.append(step))
    read = read_packed(report.path)
    assert read.weights.keys() == report.weights.keys()
    assert read.reasons == report.reasons
    assert read.info["source"] == "m"
    assert [step[0] for step in steps] == list(range(len(steps)))
    assert steps[-1][0] == steps[-1][1]
    assert steps[0][2] == "packing embed"


@pytest.mark.parametrize("options", [{}, {"weights": "int4"}, {"head": "bf16"}, {"weights": "int8", "group": 0}])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_pieces_of_a_matrix_give_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: str
) -> None:
    source = tiny_llama(tmp_path / "m", sparsity=0.36, dtype=dtype, vocab_size=330, intermediate_size=150)
    monkeypatch.setattr(matrix, "_PIECE", 1 << 30)
    whole = pack_checkpoint(open_checkpoint(source), **options)
    monkeypatch.setattr(matrix, "_PIECE", 1)
    read: list[int] = []
    monkeypatch.setattr(matrix, "join", lambda parts, join=matrix.join: (read.append(len(parts)), join(parts))[1])
    monkeypatch.setattr(convert_module, "join", matrix.join)
    folder = convert(source, tmp_path / "packed", **options).path
    assert max(read) == 11  # of 32 rows each
    parted = read_packed(folder)
    assert parted.reasons == whole.reasons
    for name, weight in whole.weights.items():
        streams = parted.weights[name].streams()
        assert weight.streams().keys() == streams.keys()
        for stream, values in weight.streams().items():
            np.testing.assert_array_equal(streams[stream].view(np.uint8), values.view(np.uint8))
        assert json.loads((folder / "gossamer.json").read_text())["weights"][name]["nnz"] == weight.nnz


def test_auto_takes_int4_for_the_matrices_that_it_stores_exactly(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    tensors = tiny_tensors(tiny_config())
    for name in tensors:
        if "layers.0.mlp" in name:
            tensors[name] = _core.pack(tensors[name], "dense", "int4", 64).unpack()
    tensors["model.layers.0.mlp.up_proj.weight"][-1, 3] += np.float32(1e-3)  # one value that is not
    save_safetensors(folder / "model.safetensors", tensors)
    rates = {(format, type_): 1e9 for format in FORMATS for type_ in TYPES}
    for machine, expected in (
        (Machine(15.0, rates), {"layers.0.gate", "layers.0.down"}),  # reading is all that takes time
        (Machine(15.0, rates | {(format, "int4"): 0.1 for format in FORMATS}), set()),
    ):
        model = pack_checkpoint(open_checkpoint(folder), machine=machine)
        assert {name for name, weight in model.weights.items() if weight.type == "int4"} == expected
        assert {name for name, reason in model.reasons.items() if "every value is int4" in reason} == expected
    np.testing.assert_array_equal(
        pack_checkpoint(open_checkpoint(folder), machine=Machine(15.0, rates)).weights["layers.0.down"].unpack(),
        tensors["model.layers.0.mlp.down_proj.weight"],
    )


def test_converting_holds_a_few_matrices_at_a_time(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m", num_hidden_layers=24, intermediate_size=1024, vocab_size=320)
    floats = (source / "model.safetensors").stat().st_size
    tracemalloc.start()
    begun: list[int] = []

    def begin(*_: Any) -> None:
        if not begun:
            tracemalloc.reset_peak()
            begun.append(tracemalloc.get_traced_memory()[0])

    convert(source, tmp_path / "packed", weights="f32", head="int8", progress=begin)
    peak = tracemalloc.get_traced_memory()[1] - begun[0]
    tracemalloc.stop()
    assert peak < floats / 4, "what numpy holds; native memory is not traced"


@pytest.mark.parametrize("failing", ["write", "sha256"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    source = tiny_llama(tmp_path / "m")
    writes: list[int] = []

    def full(*_: Any) -> None:
        writes.append(1)
        if len(writes) > 20 or failing == "sha256":
            raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(SafetensorsWriter, "_append", lambda self, *rest: full() or append(self, *rest))
    else:
        monkeypatch.setattr("gossamer.packing.folder.sha256", full)
    with pytest.raises(GossamerError, match="packed: cannot write: No space left on device"):
        convert(source, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_convert_looks_at_the_destination_first(tmp_path: Path) -> None:
    (tmp_path / "dst").write_text("precious")
    with pytest.raises(GossamerError, match="dst: exists already"):
        convert(tmp_path / "no such source", tmp_path / "dst")


def test_what_came_to_the_destination_meanwhile_stays(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "dst") as part:
            (part / "ours").write_text("x")
            (tmp_path / "dst").mkdir()
            (tmp_path / "dst" / "mine").write_text("precious")

    with pytest.raises(GossamerError, match="dst: exists already"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["dst", "mine"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "dst").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "dst") as part:
        (part / "ours").write_text("x")
    assert (tmp_path / "dst").is_symlink()
    assert (tmp_path / "disk" / "ours").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "dst"]


def test_a_destination_below_a_file_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(GossamerError, match=r"dst: cannot write: .*file is no folder"):
        convert(tmp_path / "no such source", tmp_path / "file" / "deep" / "dst")


@pytest.mark.parametrize("name", [".", ".."])
def test_a_destination_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(GossamerError, match="name a folder below or beside it"):
        convert(tmp_path / "no such source", name)


def test_packed_folders_are_not_packed_again(tmp_path: Path) -> None:
    convert(tiny_llama(tmp_path / "m"), tmp_path / "packed")
    with pytest.raises(GossamerError, match="packed already"):
        convert(tmp_path / "packed", tmp_path / "twice")


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m", unknown_key=3).rename(tmp_path / os.fsdecode(b"caf\xe9"))
    folder = convert(source, tmp_path / os.fsdecode(b"packed\xe9")).path
    read = read_packed(folder)
    assert read.info["name"] == "caf\\udce9"
    assert "caf\\udce9/config.json: keys that are not known" in read.info["notes"][0]


def test_a_value_beyond_its_type_names_the_tensor(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    tensors["model.layers.0.mlp.up_proj.weight"][3, 2] = 3.4e38
    folder = tiny_llama(tmp_path / "m")
    save_safetensors(folder / "model.safetensors", tensors)
    for weights in ("bf16", "f16"):
        with pytest.raises(GossamerError, match=r"tensor model\.layers\.0\.mlp\.up_proj\.weight: value"):
            pack_checkpoint(open_checkpoint(folder), weights=weights)
