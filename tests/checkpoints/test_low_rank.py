"""Low-rank branches from pruning to running: S + U V means the same at every station, and errors name their place."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from engine_cases import config, shapes, tensors, tokens
from gossamer import _core, arch
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.lora import LowRank
from gossamer.checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V, read_low_rank
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.generation.ready import ready
from gossamer.packing.convert import pack_checkpoint
from gossamer.packing.folder import PackedModel, read_packed, write_packed
from gossamer.pruning import Target, prune
from gossamer.pruning.low_rank import low_rank, sparse_plus_low_rank
from gossamer.pruning.methods import CALIBRATED
from gossamer.safetensors_io import SafetensorsFile
from packed import read_document, write_document
from reference_model import ReferenceModel
from tiny import save_safetensors, tiny_llama

TEXT = "The spider spins a thread of gossamer, and the thread holds the spider. If the net is thin, the net is quick.\n"


# --- the split --------------------------------------------------------------------------------------------------------


def moments(cols: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Of inputs that hang together and differ in size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, cols)) @ rng.standard_normal((cols, cols)) * np.geomspace(0.1, 3, cols)
    return x.T @ x


def cost(matrix: np.ndarray[Any, Any], gram: np.ndarray[Any, Any]) -> float:
    return float(np.einsum("ij,jk,ik->", matrix, gram, matrix, dtype=np.float64))


@pytest.mark.parametrize("shape", [(48, 30), (30, 48), (7, 5), (5, 40)])
def test_no_branch_of_its_rank_is_nearer(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    gram = moments(shape[1])
    root = np.linalg.cholesky(gram)
    singular = np.linalg.svd(matrix @ root, compute_uv=False)
    for rank in (1, 4, min(shape)):
        branch = low_rank(matrix, gram, rank)
        assert (branch.u.shape, branch.v.shape) == ((shape[0], rank), (rank, shape[1]))
        best = float(np.square(singular[rank:]).sum())  # Eckart and Young
        total = float(np.square(singular).sum())
        assert cost(matrix - branch.u @ branch.v, gram) - best < 0.01 * total


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_branch_makes_up_for_zeros(method: str) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((64, 96)).astype(np.float32)
    weight += (4 * rng.standard_normal((64, 3)) @ rng.standard_normal((3, 96))).astype(np.float32)
    gram, target, present = moments(96), Target(0.6), rng.random((64, 96)) > 0.05
    solve = CALIBRATED[method].solve
    alone = solve(weight, gram, target, present)
    sparse, branch = sparse_plus_low_rank(weight, gram, target, present, solve, 3)
    assert (sparse[~present] == 0).all()
    assert (sparse == 0).sum() == (alone == 0).sum()
    assert cost(weight - sparse - branch.u @ branch.v, gram) < 0.3 * cost(weight - alone, gram)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    source = tiny_llama(tmp_path / "dense", attention_bias=True)
    report = prune(
        source, tmp_path / "pruned", sparsity=0.5, rank=5, calibration=tmp_path / "text.txt", windows=6, length=40
    )
    assert report.rank == 5
    assert report.reached == pytest.approx(0.5, abs=1e-4)
    return tmp_path / "pruned"


def merged(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a checkpoint by canonical name, S + U V in one, float64."""
    checkpoint = open_checkpoint(folder)
    found = {}
    for name, source in arch.family(checkpoint.config).sources(checkpoint.config).items():
        stored = source.tensor
        found[name] = checkpoint.tensor(stored).astype(np.float64)
        if stored in checkpoint.low_rank:
            branch = checkpoint.low_rank[stored]
            found[name] += branch.u.astype(np.float64) @ branch.v
    return found


def test_pruned_models_run_as_the_sum_of_both_parts(pruned: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(pruned)
    linears = [name for name in checkpoint.names() if "_proj.weight" in name]
    assert sorted(checkpoint.low_rank) == sorted(linears)
    assert all(len(branch.v) == 5 for branch in checkpoint.low_rank.values())
    ids = np.random.default_rng(0).integers(3, 300, 40).astype(np.int32)
    packed = pack_checkpoint(checkpoint, weights="f32")
    exact = ReferenceModel(packed.config, merged(pruned)).logits(ids)
    np.testing.assert_allclose(ready(packed).logits(ids), exact, rtol=0, atol=1e-4)
    write_packed(tmp_path / "packed", packed)
    loaded = gossamer.load(tmp_path / "packed")
    np.testing.assert_array_equal(loaded.logits(ids), ready(packed).logits(ids))
    assert loaded.generate("The net", max_new_tokens=8)


@pytest.mark.parametrize(("weights", "factors"), [("f32", "f32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int8")])
def test_factors_take_little_and_follow_the_head(pruned: Path, weights: str, factors: str) -> None:
    packed = pack_checkpoint(open_checkpoint(pruned), weights=weights, group=32)
    u, v = packed.weights["layers.1.down" + LOW_RANK_U], packed.weights["layers.1.down" + LOW_RANK_V]
    assert (u.rows, u.cols, v.rows, v.cols) == (96, 5, 5, 160)
    assert (u.type, v.type) == (factors, factors)
    assert u.format != "dense"  # 5 inputs are not worth a dense block of 64


def test_merging_by_peft_gives_the_same_model(pruned: Path) -> None:
    torch = pytest.importorskip("torch", reason="transformers is the oracle")
    transformers = pytest.importorskip("transformers", reason="the oracle")
    pytest.importorskip("peft", reason="reads the adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32).eval()
    model.load_adapter(str(pruned / "low_rank"))
    ids = np.random.default_rng(0).integers(3, 300, 40)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    ours = gossamer.load(pruned).logits(ids.astype(np.int32))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_scales_of_adapters(pruned: Path) -> None:
    path = pruned / "low_rank" / "adapter_config.json"
    config = json.loads(path.read_text())
    name = "model.layers.0.mlp.up_proj.weight"
    before = read_low_rank(pruned)[name]
    for change, factor in (({"lora_alpha": 20}, 4.0), ({"lora_alpha": 20, "use_rslora": True}, 4.0 * np.sqrt(5))):
        path.write_text(json.dumps({**config, **change}))
        after = read_low_rank(pruned)[name]
        np.testing.assert_array_equal(after.u, before.u)
        np.testing.assert_allclose(after.v, before.v * factor, rtol=1e-6)


A = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "kind": ({"peft_type": "IA3"}, {}, "adapter_config.json: peft_type 'IA3' is not supported"),
    "dora": ({"use_dora": True}, {}, "adapter_config.json: use_dora is not supported"),
    "ranks of modules": ({"rank_pattern": {"q_proj": 2}}, {}, "q_proj has a rank of 5, and adapter_config.json says 2"),
    "bias": ({"bias": "all"}, {}, "adapter_config.json: bias 'all' is not supported"),
    "rank": ({"r": 0}, {}, "adapter_config.json: r must be"),
    "alpha": ({"lora_alpha": "8"}, {}, "adapter_config.json: r must be"),
    "one factor": ({}, {A: None}, "tensor base_model.model.model.layers.0.mlp.up_proj.lora_A.weight is missing"),
    "ranks": ({}, {A: np.zeros((3, 96), np.float32)}, "have shapes [160, 5] and [3, 96], which do not fit"),
    "inputs": ({}, {A: np.zeros((5, 90), np.float32)}, "model.layers.0.mlp.up_proj.weight is [160, 90], not [160, 96]"),
    "extra": ({}, {"magnitude": np.zeros(3, np.float32)}, "tensor magnitude is no factor of a linear"),
    "stranger": (
        {"target_modules": ".*"},
        {
            A.replace("mlp.up_proj", "x"): np.zeros((5, 2)),
            A.replace("mlp.up_proj.lora_A", "x.lora_B"): np.zeros((2, 5)),
        },
        "no linear of a block goes with the low-rank branch of model.layers.0.x.weight",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters_are_one_line(pruned: Path, case: str) -> None:
    changes, changed, words = BAD[case]
    folder = pruned / "low_rank"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    file = SafetensorsFile(folder / "adapter_model.safetensors")
    values = {name: np.array(file.float32(name)) for name in file.tensors} | changed
    save_safetensors(file.path, {name: np.asarray(v, np.float32) for name, v in values.items() if v is not None})
    with pytest.raises(GossamerError) as error:
        open_checkpoint(pruned)
    assert words in str(error.value)
    assert str(pruned) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_missing(pruned: Path) -> None:
    (pruned / "low_rank" / "adapter_model.safetensors").unlink()
    with pytest.raises(GossamerError, match=r"low_rank/adapter_model\.safetensors: "):
        open_checkpoint(pruned)
    shutil.rmtree(pruned / "low_rank")
    assert open_checkpoint(pruned).low_rank == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 97}, r"q_proj\.weight is \[96, 96\]: a rank of 97 is beyond that|a rank of 97"),
        ({"rank": -1}, "rank -1 cannot be had"),
        ({"rank": 4, "method": "magnitude"}, "rank 4 cannot be had with method magnitude"),
    ],
)
def test_ranks_that_cannot_be_had(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        prune(tiny_llama(tmp_path / "dense"), tmp_path / "pruned", sparsity=0.5, windows=2, length=32, **options)
    assert not (tmp_path / "pruned").exists()


def test_what_would_lose_the_branches_is_refused(pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="pruned: a model with low-rank branches cannot be pruned"):
        prune(pruned, tmp_path / "again", sparsity=0.6, windows=2, length=32)
    assert not (tmp_path / "again").exists()


# --- packed folders and the engine ------------------------------------------------------------------------------------


def with_branches(rank: int, type: str = "f32") -> tuple[_core.Decoder, ReferenceModel]:
    """A decoder with a branch at every linear of the first block, and the reference over what it stores."""
    c = config()
    weights, vectors = tensors(c)
    packed = {n: _core.pack(v, "dense" if "." not in n else "bitmap", type, 64) for n, v in weights.items()}
    exact = {name: weight.unpack().astype(np.float64) for name, weight in packed.items()}
    rng = np.random.default_rng(3)
    for name, (rows, cols) in shapes(c).items():
        if name.startswith("layers.0."):
            branch = LowRank(
                rng.standard_normal((rows, rank)) / rank, rng.standard_normal((rank, cols)) / np.sqrt(cols)
            )
            for end, values in ((LOW_RANK_U, branch.u), (LOW_RANK_V, branch.v)):
                packed[name + end] = _core.pack(values.astype(np.float32), "dense", type, 64)
            exact[name] += packed[name + LOW_RANK_U].unpack().astype(np.float64) @ packed[name + LOW_RANK_V].unpack()
    decoder = _core.Decoder(c.describe().to_dict(), packed, vectors, threads=2)
    assert decoder.weight_bytes == sum(weight.nbytes for name, weight in packed.items() if name != "embed")
    assert {"layers.0.down" + LOW_RANK_U, "layers.0.k" + LOW_RANK_V} < {name for name, _ in decoder.kernels()}
    return decoder, ReferenceModel(c.describe(), {**exact, **vectors})


@pytest.mark.parametrize("rank", [1, 16, 67])
def test_the_engine_adds_them(rank: int) -> None:
    decoder, model = with_branches(rank)
    ids = tokens(300)
    np.testing.assert_allclose(decoder.step([(0, ids)], all_logits=True), model.logits(ids), atol=3e-5, rtol=0)


@pytest.mark.parametrize("type", ["f32", "int8"])
def test_neither_company_nor_order_change_a_bit(type: str) -> None:
    decoder, _ = with_branches(5, type)
    ids = tokens(15)
    together = decoder.step([(0, ids)], all_logits=True)
    singly = [decoder.step([(1, ids[i : i + 1])])[0] for i in range(len(ids))]
    np.testing.assert_array_equal(together, singly)


def test_ranks_may_differ_from_layer_to_layer() -> None:
    c = config()
    weights, vectors = tensors(c)
    packed = {name: _core.pack(values, "dense", "f32") for name, values in weights.items()}
    exact = {name: values.astype(np.float64) for name, values in weights.items()}
    rng = np.random.default_rng(4)
    for name, rank in (("layers.0.q", 9), ("layers.1.q", 3)):
        u, v = (rng.standard_normal(s).astype(np.float32) / 5 for s in ((144, rank), (rank, 72)))
        packed |= {name + LOW_RANK_U: _core.pack(u, "dense", "f32"), name + LOW_RANK_V: _core.pack(v, "dense", "f32")}
        exact[name] += u.astype(np.float64) @ v
    decoder, ids = _core.Decoder(c.describe().to_dict(), packed, vectors), tokens(4)
    expected = ReferenceModel(c.describe(), {**exact, **vectors}).logits(ids)
    for _ in range(2):  # what the first call leaves behind is not seen by the second
        np.testing.assert_allclose(decoder.step([(0, ids)], all_logits=True), expected, atol=2e-5, rtol=0)
        decoder.free(0)


def test_half_a_branch_is_named() -> None:
    c = config()
    weights, vectors = tensors(c)
    packed = {name: _core.pack(values, "dense", "f32") for name, values in weights.items()}
    u, v = _core.pack(np.ones((144, 3)), "dense", "f32"), _core.pack(np.ones((3, 72)), "dense", "f32")
    for extra, message in (
        ({"u": u}, "weight 'layers.0.q.low_rank_v' is missing"),
        ({"v": v}, "weight 'layers.0.q.low_rank_v' is unknown"),
        ({"u": v, "v": v}, r"weight 'layers.0.q.low_rank_u' is 3 x 72, but the config asks for 144 x 72"),
    ):
        named = {f"layers.0.q.low_rank_{key}": weight for key, weight in extra.items()}
        with pytest.raises(ValueError, match=message):
            _core.Decoder(c.describe().to_dict(), {**packed, **named}, vectors)


def test_descriptions_of_packed_branches(pruned: Path, tmp_path: Path) -> None:
    write_packed(tmp_path / "packed", pack_checkpoint(open_checkpoint(pruned)))
    folder = tmp_path / "packed"
    document = read_document(folder)
    u = "layers.0.q" + LOW_RANK_U
    for key, value, words in (
        ("cols", 0, "weight layers.0.q: its low-rank branch has a bad rank 0"),
        ("cols", "5", "bad rank '5'"),
        ("cols", 6, f"weight {u[:-1]}v: its size is (5, 96), the decoder needs (6, 96)"),
        ("rows", 95, f"weight {u}: its size is (95, 5), the decoder needs (96, 5)"),
    ):
        changed = deepcopy(document)
        changed["weights"][u][key] = value
        write_document(folder, changed)
        with pytest.raises(GossamerError) as error:
            read_packed(folder)
        assert words in str(error.value)
    for name in (u, u[:-1] + "v"):
        lacking = {**document, "weights": {key: value for key, value in document["weights"].items() if key != name}}
        write_document(folder, lacking)
        with pytest.raises(GossamerError, match=r"layers\.0\.q"):
            read_packed(folder)


def test_the_decoder_of_gpus_adds_them(pruned: Path) -> None:
    torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
    from gossamer.nn.engine import Engine

    packed: PackedModel = pack_checkpoint(open_checkpoint(pruned), weights="f32")
    ids = np.random.default_rng(0).integers(3, 300, 20).astype(np.int32)
    engine = Engine(packed.config, packed.weights, packed.vectors, "cpu", dtype=torch.float32)
    np.testing.assert_allclose(engine.step([(0, ids)], True), ready(packed).logits(ids), rtol=0, atol=5e-4)
    factors = sum(4 * weight.rows * weight.cols for name, weight in packed.weights.items() if "low_rank" in name)
    bare = Engine(
        packed.config,
        {name: weight for name, weight in packed.weights.items() if "low_rank" not in name},
        packed.vectors,
        "cpu",
        dtype=torch.float32,
    )
    assert engine.weight_bytes - bare.weight_bytes == factors


def test_finetuning_refuses_them(pruned: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the [torch] extra is not installed")
    from gossamer.finetune import finetune

    with pytest.raises(GossamerError, match="a model with low-rank branches cannot be finetuned"):
        finetune(pruned, tmp_path / "out", teacher=tmp_path / "dense", data=[tmp_path / "text.txt"])


def test_inspect_shows_them(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pruned), "--json"]) == 0
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert layers["layers.0.gate" + LOW_RANK_U]["shape"] == [160, 5]
    assert layers["layers.0.gate" + LOW_RANK_V]["bytes"] == 4 * 5 * 96
