"""Pruning whole checkpoints: what is written, what transformers reads, what goes wrong and what that leaves behind."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer import pruning
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.packing.convert import convert as convert_checkpoint
from gossamer.pruning import Report, prune
from gossamer.pruning.store import FolderStore
from tiny import tiny_llama

TEXT = "The spider spins a thread of gossamer, and the thread holds the spider. If the net is thin, the net is quick.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 20, encoding="utf-8")
    return path


def small(src: Path, dst: Path, **options: Any) -> Report:
    return prune(src, dst, **({"windows": 6, "length": 40} | options))


def linears(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.names() if "_proj.weight" in name}


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("method", pruning.METHODS)
def test_transformers_reads_exact_zeros_and_all_else_as_it_was(
    tmp_path: Path, text: Path, method: str, dtype: str
) -> None:
    torch = pytest.importorskip("torch", reason="transformers is the reader here")
    transformers = pytest.importorskip("transformers", reason="the reader")
    source = tiny_llama(tmp_path / "dense", dtype=dtype)
    report = small(source, tmp_path / "pruned", method=method, sparsity=0.5, allocation="uniform", calibration=text)

    read = {
        name: transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").state_dict()
        for name in ("dense", "pruned")
    }
    assert read["pruned"].keys() == read["dense"].keys()
    for name, values in read["pruned"].items():
        assert values.dtype == read["dense"][name].dtype
        if "_proj.weight" in name:
            zeros = int((values == 0).sum())
            assert zeros == values.numel() // 2
            assert report.layers[name] == 0.5
        else:
            assert torch.equal(values, read["dense"][name])
    assert report.reached == 0.5
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "pruned")("The net").input_ids) > 0


@pytest.mark.parametrize("allocation", [None, "uniform", "owl", "divergence"])
@pytest.mark.parametrize("method", pruning.methods.CALIBRATED)
def test_zeros_add_up_however_they_are_divided(tmp_path: Path, text: Path, method: str, allocation: str | None) -> None:
    source = tiny_llama(tmp_path / "dense")
    calls: list[str] = []
    report = small(
        source,
        tmp_path / "pruned",
        method=method,
        sparsity=0.37,
        allocation=allocation,
        calibration=text,
        progress=lambda _, __, what: calls.append(what),
    )
    assert report.allocation == (allocation or "divergence")
    values = linears(tmp_path / "pruned")
    zeros = sum(int((value == 0).sum()) for value in values.values())
    entries = sum(value.size for value in values.values())
    assert report.layers == {name: float((value == 0).mean()) for name, value in values.items()}
    if allocation == "uniform":
        assert all(abs((value == 0).sum() - 0.37 * value.size) <= 0.5 for value in values.values())
    else:
        assert zeros == round(0.37 * entries)
        assert len(set(report.layers.values())) > 1
    assert ("measuring what matters" in calls) == (report.allocation == "divergence")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5, "allocation": "luck"}, "unknown allocation 'luck'; there are uniform, owl, divergence"),
        ({"pattern": (2, 4), "allocation": "owl"}, "N:M pattern .* allocation owl cannot be had"),
        ({"sparsity": 0.5, "allocation": "divergence", "method": "magnitude"}, "magnitude measures nothing"),
    ],
)
def test_allocations_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        small(tiny_llama(tmp_path / "dense"), tmp_path / "pruned", **options)


def test_the_report_beside_the_weights(tmp_path: Path, text: Path) -> None:
    source = tiny_llama(tmp_path / "dense")
    report = small(source, tmp_path / "pruned", pattern=(2, 4), calibration=text, seed=5)
    written = json.loads((tmp_path / "pruned" / "gossamer_prune.json").read_text(encoding="utf-8"))
    assert written["method"] == report.method == "admm"
    assert written["pattern"] == "2:4"
    assert written["sparsity"] == 0.5
    assert written["calibration"] == "text.txt"
    assert (written["windows"], written["length"], written["seed"]) == (6, 40, 5)
    assert written["source"] == "dense"
    assert written["layers"] == report.layers == dict.fromkeys(linears(source), 0.5)
    for values in linears(tmp_path / "pruned").values():
        assert ((values.reshape(-1, 4) != 0).sum(axis=1) == 2).all()


@pytest.mark.parametrize("method", pruning.methods.CALIBRATED)
@pytest.mark.parametrize(("sparsity", "group"), [(0.5, 64), (0.5, 0), (0, 32)])
def test_int4_checkpoints_convert_exactly(tmp_path: Path, text: Path, method: str, sparsity: float, group: int) -> None:
    source = tiny_llama(tmp_path / "dense", dtype="bf16")
    if not sparsity:
        small(source, tmp_path / "half", sparsity=0.5, calibration=text)
        source = tmp_path / "half"
    report = small(
        source, tmp_path / "pruned", method=method, sparsity=sparsity, weights="int4", group=group, calibration=text
    )
    assert (report.weights, report.group) == ("int4", group)
    assert report.reached >= 0.5
    convert_checkpoint(tmp_path / "pruned", tmp_path / "packed", weights="int4", group=group)
    model = gossamer.load(str(tmp_path / "packed"))
    checkpoint = open_checkpoint(tmp_path / "pruned")
    for layer, (ours, theirs) in itertools.product((0, 1), (("q", "self_attn.q"), ("down", "mlp.down"))):
        name = f"model.layers.{layer}.{theirs}_proj.weight"
        assert checkpoint.dtype(name) == "f32"
        assert checkpoint.config["dtype"] == "float32"  # so that others load it without rounding it again
        np.testing.assert_array_equal(model.weights[f"layers.{layer}.{ours}"].unpack(), checkpoint.tensor(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int8"}, "weights must be stored, int4 or auto, got 'int8'"),
        ({"weights": "auto"}, "weights auto go with a budget of bits"),
        ({"weights": "int4", "method": "magnitude"}, "method magnitude cannot round to int4"),
        ({"weights": "int4", "group": 48}, "group must be one of 0, 32, 64, 128, got 48"),
    ],
)
def test_rounding_that_makes_no_sense(tmp_path: Path, text: Path, options: dict[str, Any], message: str) -> None:
    source = tiny_llama(tmp_path / "dense")
    with pytest.raises(GossamerError, match=message):
        small(source, tmp_path / "pruned", sparsity=0.5, calibration=text, **options)
    assert not (tmp_path / "pruned").exists()


def test_own_samples_by_default_reproducible_by_seed_whatever_the_threads(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "dense")
    calls: list[tuple[int, int, str]] = []
    report = small(
        source, tmp_path / "one", sparsity=0.6, windows=48, threads=1, progress=lambda *call: calls.append(call)
    )
    assert report.calibration == "the dense model's own samples"
    small(source, tmp_path / "two", sparsity=0.6, windows=48, threads=2)
    small(source, tmp_path / "other", sparsity=0.6, windows=48, seed=1)
    one, two, other = (linears(tmp_path / name) for name in ("one", "two", "other"))
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    phases = list(dict.fromkeys(what for _, _, what in calls))
    assert phases == [
        "sampling calibration text",
        "measuring what matters",
        "pruning blocks",
        "writing the checkpoint",
    ]
    for phase in phases:
        done = [(a, b) for a, b, what in calls if what == phase]
        assert done[-1][0] == done[-1][1]
        assert done == sorted(done)


def test_shards_and_biases_and_tied_heads(tmp_path: Path, text: Path) -> None:
    source = tiny_llama(tmp_path / "dense", shards=3, attention_bias=True, tie_word_embeddings=True)
    report = small(source, tmp_path / "pruned", sparsity=0.3, calibration=text)
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "pruned")
    assert sorted(after.names()) == sorted(before.names())
    for name in before.names():
        if "_proj.weight" in name:
            assert (after.tensor(name) == 0).mean() == report.layers[name] > 0
        else:
            np.testing.assert_array_equal(after.tensor(name), before.tensor(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a sparsity or"),
        ({"sparsity": 1.0}, "below 1"),
        ({"sparsity": 0.5, "method": "lottery"}, "unknown pruning method 'lottery'"),
        ({"sparsity": 0.5, "windows": 0}, "at least 1 window"),
        ({"sparsity": 0.5, "length": 129}, "length 129 is more than the model's context of 128"),
        ({"sparsity": 0.5, "calibration": "short.txt"}, r"short\.txt has \d+ tokens"),
        ({"sparsity": 0.5, "calibration": "latin.txt"}, r"latin\.txt: not UTF-8"),
        ({"sparsity": 0.5, "calibration": "none.txt"}, r"none\.txt: No such file"),
    ],
)
def test_bad_options_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tiny_llama("dense")
    Path("short.txt").write_text("a word", encoding="utf-8")
    Path("latin.txt").write_bytes("très".encode("latin-1"))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(GossamerError, match=message):
        small(source, Path("pruned"), **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "dense")
    (tmp_path / "pruned").mkdir()
    small(source, tmp_path / "pruned", method="magnitude", sparsity=0.5)  # an empty folder is none
    with pytest.raises(GossamerError, match="pruned: exists already; --force replaces it"):
        small(source, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    report = small(source, tmp_path / "pruned", method="magnitude", sparsity=0.25, force=True)
    assert report.reached == pytest.approx(0.25, abs=0.01)
    for inside in (tmp_path, tmp_path / "dense"):
        with pytest.raises(GossamerError, match=r"cannot be replaced, since .*dense is read|holds more than a model"):
            small(source, inside, method="magnitude", sparsity=0.5, force=True)
    assert (source / "model.safetensors").is_file()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("during", ["pruning blocks", "writing"])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, during: str
) -> None:
    source = tiny_llama(tmp_path / "dense")
    before = sorted(tmp_path.iterdir())

    def fail(*_: Any) -> None:
        raise failure

    if during == "writing":
        # The report is the last file; by then the weights are written beside.
        monkeypatch.setattr(pruning.Report, "write", fail)
    progress = fail if during == "pruning blocks" else None
    expected = GossamerError if during == "writing" and isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match="No space left" if isinstance(failure, OSError) else None):
        small(source, tmp_path / "pruned", sparsity=0.5, calibration=text, progress=progress)
    monkeypatch.undo()
    kept = [tmp_path / "pruned.pruning"] if during == "writing" else []  # what a run goes on from
    assert sorted(tmp_path.iterdir()) == sorted(before + kept)
    small(source, tmp_path / "pruned", sparsity=0.5, calibration=text)
    assert (tmp_path / "pruned" / "gossamer_prune.json").exists()
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "pruned"])


def same_files(one: Path, other: Path) -> bool:
    """Whether two pruned folders hold the same weights."""
    files = [path.relative_to(one) for path in one.rglob("*.safetensors")]
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        ("between blocks", {"method": "sparsegpt", "pattern": (2, 4), "weights": "int4"}),
        ("between blocks", {"method": "sparsegpt", "sparsity": 0.5, "calibration": None, "windows": 3}),
        ("in a block", {"method": "wanda", "sparsity": 0.3, "rank": 2}),
        ("in a block", {"method": "wanda", "bits": 8.0, "weights": "auto", "rank": 2}),
        ("in a block", {"sparsity": 0.5}),
        ("killed", {"sparsity": 0.5}),
    ],
)
def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], stop: str
) -> None:
    source = tiny_llama(tmp_path / "dense", dtype="bf16", num_hidden_layers=3)
    options = {"calibration": text, "length": 40, "windows": 6, **options}
    prune(source, tmp_path / "whole", **options)
    made: list[str] = []

    def watch(done: int, _total: int, what: str) -> None:
        if what == "pruning blocks" and done == 1 and stop == "between blocks":
            raise KeyboardInterrupt
        made.append(what)

    if stop == "killed":
        given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        code = (
            "import os, gossamer\n"
            "def progress(done, total, what):\n"
            "    if (done, what) == (2, 'pruning blocks'): os._exit(9)\n"
            f"gossamer.prune({str(source)!r}, {str(tmp_path / 'pruned')!r}, progress=progress, **{given!r})"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    else:
        if stop == "in a block":

            def keep(self: FolderStore, name: str, values: Any) -> Any:
                if name.startswith("2.pruned"):
                    raise KeyboardInterrupt
                return FolderStore.keep(self, name, values)

            monkeypatch.setattr("gossamer.pruning.pipeline.FolderStore", type("S", (FolderStore,), {"keep": keep}))
        with pytest.raises(KeyboardInterrupt):
            prune(source, tmp_path / "pruned", progress=watch, **options)
        monkeypatch.undo()
    assert not (tmp_path / "pruned").exists()
    assert (tmp_path / "pruned.pruning" / "walk.json").exists()
    with pytest.raises(
        GossamerError, match=r"pruned\.pruning: the run there was begun with seed '0', this one has '1'"
    ):
        prune(source, tmp_path / "pruned", **options, seed=1)
    seen: list[str] = []
    prune(source, tmp_path / "pruned", progress=lambda _done, _total, what: seen.append(what), **options)
    assert not {"sampling calibration text", "measuring what matters"} & set(seen)
    assert same_files(tmp_path / "whole", tmp_path / "pruned")
    assert not (tmp_path / "pruned.pruning").exists()


def test_hidden_states_and_matrices_lie_on_disk(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_llama(tmp_path / "dense", num_hidden_layers=2)
    most: dict[str, int] = {}

    class Watched(FolderStore):
        def done(self, block: int) -> None:
            super().done(block)
            folder = tmp_path / "pruned.pruning"
            most.update({path.name: 0 for path in folder.iterdir()})
            assert not list(folder.glob(f"{block}.*"))

    monkeypatch.setattr("gossamer.pruning.pipeline.FolderStore", Watched)
    small(source, tmp_path / "pruned", method="sparsegpt", sparsity=0.5, calibration=text)
    for name in ("1.pruned-0.npy", "1.dense-0.npy", "dense.layers.1.down.safetensors", "pruned.layers.0.q.safetensors"):
        assert name in most


def test_nan_in_a_weight_names_its_tensor(tmp_path: Path, text: Path) -> None:
    source = tiny_llama(tmp_path / "dense")
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name = "model.layers.1.mlp.up_proj.weight"
    start = 8 + int.from_bytes(data[:8], "little") + header[name]["data_offsets"][0]
    data[start : start + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    for method in pruning.METHODS:
        with pytest.raises(GossamerError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN"):
            small(source, tmp_path / "pruned", method=method, sparsity=0.5, calibration=text)
    shutil.rmtree(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt"]


def test_zeros_are_divided_as_in_another_run(tmp_path: Path, text: Path) -> None:
    source = tiny_llama(tmp_path / "dense")
    first = gossamer.prune(source, tmp_path / "first", sparsity=0.5, calibration=text, windows=4, length=32)
    assert len(set(first.layers.values())) > 1
    report = tmp_path / "first" / "gossamer_prune.json"
    for method in ("admm", "magnitude"):
        again = gossamer.prune(
            source, tmp_path / method, method=method, allocation=report, calibration=text, windows=2, length=32
        )
        assert again.allocation == "gossamer_prune.json"
        assert again.layers == pytest.approx(first.layers, abs=1e-3)
        assert again.sparsity == pytest.approx(first.reached)
