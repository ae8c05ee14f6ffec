from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer import _core
from gossamer.arch.llama import Sizes
from gossamer.arch.spec import Transformer
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError, naming
from gossamer.packing.convert import pack_checkpoint
from gossamer.packing.folder import PackedModel, is_packed, read_packed, write_packed
from gossamer.safetensors_io import SafetensorsFile, SafetensorsWriter
from packed import read_document, write_document
from tiny import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    folder = tiny_llama(tmp_path_factory.mktemp("src") / "m", sparsity=0.5, attention_bias=True)
    return pack_checkpoint(open_checkpoint(folder), format="bitmap")  # whatever this machine would choose


@pytest.fixture
def folder(model: PackedModel, tmp_path: Path) -> Path:
    write_packed(tmp_path / "packed", model)
    return tmp_path / "packed"


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int8"},
        {"weights": "int4", "group": 32},
        {"weights": "bf16", "format": "csr"},
        {"weights": "f32", "format": "bitmap"},
        {"weights": "f16", "format": "nm"},
        {"weights": "int4", "format": "csr", "group": 0},
    ],
)
@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True, "mlp_bias": True}])
def test_what_is_written_is_what_is_read(tmp_path: Path, options: dict[str, Any], overrides: dict[str, Any]) -> None:
    written = pack_checkpoint(open_checkpoint(tiny_llama(tmp_path / "m", sparsity=0.7, **overrides)), **options)
    written.info["notes"] = ["ü"]
    write_packed(tmp_path / "packed", written)
    read = read_packed(tmp_path / "packed")
    assert read.config == written.config
    assert read.info == written.info
    assert read.reasons == written.reasons
    assert read.weights.keys() == written.weights.keys() == read.config.weights.keys()
    for name, weight in written.weights.items():
        other = read.weights[name]
        for field in ("rows", "cols", "format", "type", "group", "pattern", "nnz", "nbytes"):
            assert getattr(other, field) == getattr(weight, field), (name, field)
        np.testing.assert_array_equal(other.unpack(), weight.unpack())
    assert read.vectors.keys() == written.vectors.keys()
    for name, vector in written.vectors.items():
        np.testing.assert_array_equal(read.vectors[name], vector)
    text = "<|im_start|>The net 42"
    assert read.tokenizer.encode(text) == written.tokenizer.encode(text)
    assert read.tokenizer.eos_ids == written.tokenizer.eos_ids
    assert read.tokenizer.chat_template == written.tokenizer.chat_template


def test_streams_are_views_of_the_file_aligned_to_cache_lines(folder: Path) -> None:
    read = read_packed(folder)
    for weight in read.weights.values():
        for stream in weight.streams().values():
            assert stream.ctypes.data % 64 == 0
            assert not stream.flags.writeable
    # A page that is changed in the file is changed in the weight: nothing was copied.
    values = read.weights["layers.0.q"].streams()["values"]
    before = int(values[0])
    place = SafetensorsFile(folder / "weights.safetensors").info("layers.0.q.values").start
    with (folder / "weights.safetensors").open("r+b") as file:
        file.seek(place)
        file.write(bytes([before ^ 1]))
    assert int(values[0]) == before ^ 1


def test_a_mapped_model_gives_the_logits_of_the_one_in_memory(model: PackedModel, folder: Path) -> None:
    tokens = np.arange(40, dtype=np.int32)
    logits = [
        _core.Decoder(packed.config.to_dict(), packed.weights, packed.vectors).step([(0, tokens)], all_logits=True)
        for packed in (model, read_packed(folder))
    ]
    np.testing.assert_array_equal(logits[0], logits[1])


def test_only_models_and_empty_folders_are_replaced(model: PackedModel, folder: Path, tmp_path: Path) -> None:
    before = (folder / "weights.safetensors").stat().st_ino
    with pytest.raises(GossamerError, match=r"packed: exists already; --force replaces it$"):
        write_packed(folder, model)
    assert (folder / "weights.safetensors").stat().st_ino == before
    write_packed(folder, model, force=True)
    assert (folder / "weights.safetensors").stat().st_ino != before
    read_packed(folder)
    (tmp_path / "empty").mkdir()
    write_packed(tmp_path / "empty", model)
    mine = tmp_path / "mine"
    (mine / "drafts").mkdir(parents=True)
    (mine / "thesis.txt").write_text("precious")
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "config.json").write_text("{}")  # not a model's: there are other folders
    for place, what in ((mine, "holds more"), (mine / "thesis.txt", "is no folder"), (tmp_path / "project", "holds")):
        for force in (False, True):
            with pytest.raises(GossamerError, match=f"exists already and {what}"):
                write_packed(place, model, force=force)
    assert (mine / "thesis.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine", "packed", "project"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there(
    model: PackedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    calls = []

    def fail(self: SafetensorsWriter, data: memoryview) -> None:
        calls.append(len(data))
        if len(calls) == 20:
            with naming(self.path, "cannot write"):
                raise error

    monkeypatch.setattr(SafetensorsWriter, "_write", fail)
    with pytest.raises((GossamerError, KeyboardInterrupt)) as raised:
        write_packed(folder, model, force=True)
    if isinstance(error, OSError):
        assert str(raised.value) == f"{folder / 'weights.safetensors'}: cannot write: No space left on device"
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    read_packed(folder)


Change = Callable[[dict[str, Any]], Any]


def set_at(*keys: Any, to: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return change


def drop(*keys: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


Q = ("weights", "layers.0.q")
MODEL = ("transformer",)
MIXERS = [("transformer", "stack", "kinds", 0, "branches", place, "mixer") for place in range(2)]
ROPE = (*MIXERS[0], "positions")
BAD: dict[str, tuple[Change, str]] = {
    "version": (set_at("format_version", to=3), "format_version is 3; this version of gossamer knows 1 and 2"),
    "version true": (set_at("format_version", to=True), "format_version is True"),
    "no version": (drop("format_version"), "format_version is None"),
    "layout": (set_at("layout", to="gpu"), "layout is 'gpu'; this version of gossamer knows 'cpu16x4-v1'"),
    "no description": (drop("transformer"), "transformer must be an object, got None"),
    "unknown field": (set_at(*MODEL, "moe", to=1), "transformer: moe is not known; there are: hidden, vocab"),
    "missing field": (drop(*MODEL, "hidden"), "transformer: hidden is missing"),
    "text": (set_at(*MODEL, "hidden", to="96"), "transformer.hidden must be of type int, got '96'"),
    "boolean": (set_at(*MODEL, "context", to=True), "transformer.context must be of type int"),
    "float": (set_at(*MODEL, "vocab", to=320.0), "transformer.vocab must be of type int"),
    "overflow": (set_at(*MIXERS[0], "head_dim", to=1 << 62), "head_dim must be from 1 to 16777216"),
    "wide": (set_at(*MIXERS[0], "head_dim", to=1 << 24), "are too wide"),
    "many layers": (set_at(*MODEL, "stack", "layers", to=[0] * 4097), "layers must be from 1 to 4096 numbers"),
    "no layers": (set_at(*MODEL, "stack", "layers", to=[]), "layers must be from 1 to 4096 numbers"),
    "other kinds": (set_at(*MODEL, "stack", "layers", to=[0, 1]), "layers must be numbers of the 1 kinds of blocks"),
    "no branches": (set_at(*MIXERS[0][:5], to=[]), "branches must be different ones, got none"),
    "negative": (set_at(*MODEL, "context", to=-1), "context must be from 1"),
    "eps": (set_at(*MODEL, "stack", "norm", "eps", to=float("nan")), "stack.norm: eps must be finite"),
    "norm": (
        set_at(*MODEL, "stack", "norm", "kind", to="batch"),
        "norm.kind must be 'rms' or 'layer', got 'batch'",
    ),
    "heads": (set_at(*MIXERS[0], "kv_heads", to=3), "heads 4 is not a multiple of kv_heads 3"),
    "window": (set_at(*MIXERS[0], "window", to=0), "branches[0].mixer: window must be from 1"),
    "inv_freq": (set_at(*ROPE, "inv_freq", to=[1.0] * 13), "inv_freq must be at most 12"),
    "inv_freq inf": (set_at(*ROPE, "inv_freq", to=[float("inf")]), "positions: inv_freq holds a value that is not"),
    "inv_freq text": (set_at(*ROPE, "inv_freq", to=["x"]), "positions.inv_freq[0] must be of type float, got 'x'"),
    "positions": (set_at(*ROPE, "part", to="spiral"), "positions: part 'spiral' is not known; there are: rope, alibi"),
    "activation": (
        set_at(*MIXERS[1], "activation", to="cube"),
        "must be 'silu' or 'gelu' or 'gelu_tanh' or 'relu' or 'relu2', got 'cube'",
    ),
    "mixer": (set_at(*MIXERS[1], "part", to="mamba"), "mixer: part 'mamba' is not known; there are: attention, mlp"),
    "biases": (set_at(*MIXERS[1], "biases", to=["q"]), "biases must be some of gate, up, down, got 'q'"),
    "tied": (set_at(*MODEL, "head", "tied", to=True), "weight head is not part of the decoder"),
    "no weight": (drop(*Q), "weight layers.0.q is missing"),
    "no weights": (set_at("weights", to=[]), "weights and info must be objects"),
    "no info": (drop("info"), "weights and info must be objects"),
    "other weight": (
        lambda d: d["weights"].update({"x": d["weights"].pop("layers.0.q")}),
        "weight layers.0.q is missing",
    ),
    "entry": (set_at(*Q, to=7), "weight layers.0.q: must be an object"),
    "unknown key": (set_at(*Q, "codebook", to=[1]), "weight layers.0.q: must be an object of cols, format"),
    "rows": (set_at(*Q, "rows", to=95), "weight layers.0.q: its size is (95, 96), the decoder needs (96, 96)"),
    "format": (set_at(*Q, "format", to="coo"), "unknown format 'coo'"),
    "list": (set_at(*Q, "format", to=["nm"]), "unknown format"),
    "type": (set_at(*Q, "type", to="int2"), "type 'int2'"),
    "group": (set_at(*Q, "group", to=48), "bad group 48"),
    "float group": (set_at(*Q, "group", to=64.0), "bad group 64.0"),
    "group of floats": (set_at(*Q, "type", to="f32"), "bad group 64"),
    "pattern": (set_at(*Q, "pattern", to=[2, 4]), "format bitmap has no pattern"),
    "no pattern": (set_at(*Q, "format", to="nm"), "bad pattern None"),
    "huge pattern": (lambda d: d["weights"]["layers.0.q"].update(format="nm", pattern=[1, 6]), "pattern 1:6 is not"),
    "other format": (set_at(*Q, "format", to="csr"), "weights.safetensors: weight layers.0.q: stream"),
    "other type": (set_at(*Q, "type", to="int4"), "weights.safetensors: weight layers.0.q: stream"),
    "other group": (set_at(*Q, "group", to=32), "weights.safetensors: weight layers.0.q: stream 'scales'"),
}


OLD = ("decoder",)
BAD_OLD: dict[str, tuple[Change, str]] = {
    "no decoder": (drop("decoder"), "decoder must be an object"),
    "unknown field": (set_at(*OLD, "moe", to=1), "unknown fields: moe"),
    "missing field": (drop(*OLD, "hidden"), "hidden"),
    "text": (set_at(*OLD, "hidden", to="96"), "decoder: hidden is of the wrong type: '96'"),
    "boolean": (set_at(*OLD, "layers", to=True), "layers is of the wrong type"),
    "overflow": (set_at(*OLD, "head_dim", to=1 << 62), "decoder: head_dim must be from 1"),
    "wide": (set_at(*OLD, "head_dim", to=1 << 24), "are too wide"),
    "many layers": (set_at(*OLD, "layers", to=1 << 24), "layers must be from 1 to 4096"),
    "eps": (set_at(*OLD, "norm_eps", to=float("nan")), "eps must be finite"),
    "inv_freq text": (set_at(*OLD, "inv_freq", to=["x"]), "decoder: could not convert"),
    "activation": (set_at(*OLD, "activation", to="gelu"), "activation must be 'silu'"),
    "biases": (set_at(*OLD, "biases", to=[]), "unknown fields: biases"),
    "tied": (set_at(*OLD, "tied", to=True), "weight head is not part of the decoder"),
}


def as_version_1(folder: Path) -> dict[str, Any]:
    """Rewrites a folder's description as the first version had it."""
    document = read_document(folder)
    sizes = Sizes.of(Transformer.from_dict(document.pop("transformer")))
    values = {**asdict(sizes), "activation": "silu"}
    del values["biases"]
    document |= {"format_version": 1, "decoder": values}
    write_document(folder, document)
    return document


def test_folders_of_version_1_say_the_same(folder: Path) -> None:
    new = read_packed(folder)
    as_version_1(folder)
    old = read_packed(folder)
    assert old.config == new.config
    assert "k" in old.config.blocks[0].branches[0].mixer.biases
    assert old.vectors.keys() == new.vectors.keys()


@pytest.mark.parametrize("case", BAD_OLD)
def test_bad_descriptions_of_version_1(folder: Path, case: str) -> None:
    change, words = BAD_OLD[case]
    document = as_version_1(folder)
    change(document)
    write_document(folder, document)
    with pytest.raises(GossamerError) as error:
        read_packed(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("case", BAD)
def test_bad_descriptions_are_one_line_that_names_file_and_weight(folder: Path, case: str) -> None:
    change, words = BAD[case]
    document = read_document(folder)
    change(document)
    write_document(folder, document)
    with pytest.raises(GossamerError) as error:
        read_packed(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Writes the folder's tensors anew after a change."""
    path = folder / "weights.safetensors"
    file = SafetensorsFile(path)
    tensors = {name: np.array(file.raw(name)) for name in file.tensors}
    change(tensors)
    with SafetensorsWriter(path, tensors) as writer:
        for name, values in tensors.items():
            writer.add(name, values)


def flip(name: str, place: int, by: int) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name][place] += tensors[name].dtype.type(by)

    return change


BAD_STREAMS: dict[str, tuple[Change, str]] = {
    "missing stream": (drop("layers.0.q.masks"), "weight layers.0.q: stream 'masks' is missing"),
    "missing norm": (drop("norm"), "tensor norm is missing"),
    "unknown stream": (lambda t: t.update({"layers.0.q.extra": np.ones(4)}), "layers.0.q.extra is not part"),
    "unknown layer": (lambda t: t.update({"layers.2.q.values": np.ones(4)}), "layers.2.q.values is not part"),
    "norm length": (set_at("norm", to=np.ones(95, np.float32)), "tensor norm must be a vector of 96 F32 values"),
    "norm type": (set_at("norm", to=np.ones(96)), "tensor norm must be a vector of 96 F32 values"),
    "bias length": (set_at("layers.1.k.bias", to=np.ones(1, np.float32)), "layers.1.k.bias must be a vector of 48"),
    "stream type": (set_at("layers.0.q.masks", to=np.ones(4, np.int64)), "layers.0.q.masks must be a vector of U64"),
    "matrix": (lambda t: t.update({"layers.0.q.masks": t["layers.0.q.masks"][None]}), "must be a vector of U64"),
    "short": (lambda t: t.update({"layers.0.q.values": t["layers.0.q.values"][:-64]}), "stream 'values' must have"),
    "offset": (flip("layers.0.q.offsets", 1, 64), "weight layers.0.q: stream 'offsets'"),
    "first offset": (flip("layers.0.q.offsets", 0, 1), "weight layers.0.q: stream 'offsets'"),
    "mask": (flip("layers.0.q.masks", 0, 1), "weight layers.0.q: stream"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_bad_streams_are_refused_before_they_are_used(folder: Path, case: str) -> None:
    change, words = BAD_STREAMS[case]
    rewrite(folder, change)
    with pytest.raises(GossamerError) as error:
        read_packed(folder)
    assert words in str(error.value)
    assert str(folder / "weights.safetensors") in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_what_was_written_beside_must_be_there(folder: Path, name: str) -> None:
    """Without it a text would end elsewhere, or a conversation have no template."""
    (folder / name).unlink()
    with pytest.raises(GossamerError, match=f"{name}: missing; gossamer.json says"):
        read_packed(folder)


@pytest.mark.parametrize("name", ["gossamer.json", "weights.safetensors", "tokenizer.json"])
def test_missing_and_truncated_files(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GossamerError, match=name):
        read_packed(folder)
    (folder / name).unlink()
    with pytest.raises(GossamerError, match=name):
        read_packed(folder)
    (folder / name).write_bytes(whole)
    assert is_packed(folder)
    read_packed(folder)  # repaired


def test_a_folder_that_lacks_any_of_its_facts_runs_or_is_refused(folder: Path) -> None:
    """Facts that nothing stands on may be missing, a model's name among them."""
    whole, missed = read_document(folder), {}
    for fact in whole["info"]:
        write_document(folder, whole | {"info": {key: value for key, value in whole["info"].items() if key != fact}})
        try:
            model = gossamer.load(folder, threads=1)
        except GossamerError as error:
            missed[fact] = str(error)
        else:
            assert repr(model)
            model.generate("a", max_new_tokens=1)
    assert "name" in whole["info"]
    assert "name" not in missed
    assert all(line.startswith(str(folder)) for line in missed.values())


def test_a_folder_can_be_moved(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "elsewhere")
    read_packed(tmp_path / "elsewhere")
