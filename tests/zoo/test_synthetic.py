from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from checkout import ROOT
from gossamer import _core
from gossamer.arch import family
from gossamer.arch.llama import Sizes
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.packing.folder import PackedModel
from gossamer.zoo import synthetic
from tiny import tiny_config

LAYERS = 3


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, tied in (("tiny", True), ("untied", False)):
        config = tiny_config(hidden_size=128, intermediate_size=192, num_hidden_layers=LAYERS, tie_word_embeddings=tied)
        monkeypatch.setitem(synthetic.CONFIGS, name, config)
    monkeypatch.setitem(synthetic.CONFIGS, "experts", config | {"model_type": "mixtral", "num_local_experts": 3})


def linears(packed: PackedModel) -> dict[str, _core.Weight]:
    return {name: weight for name, weight in packed.weights.items() if "." in name}


@pytest.mark.parametrize("name", ["tiny", "untied", "experts"])
def test_the_shape_is_that_of_the_config(name: str) -> None:
    packed = synthetic.pack(name)
    sizes = synthetic.CONFIGS[name]
    assert packed.config == family(sizes).describe(sizes)
    assert {key: (weight.rows, weight.cols) for key, weight in packed.weights.items()} == packed.config.weights
    assert packed.reasons.keys() == packed.weights.keys()
    assert ("head" in packed.weights) == (name != "tiny")


def test_routers_have_no_zeros_and_are_not_rounded() -> None:
    packed = synthetic.pack("experts", weights="int4")
    for name, weight in linears(packed).items():
        exact = name in packed.config.exact
        assert weight.type == ("f32" if exact else "int4")
        assert weight.nnz == weight.rows * weight.cols * (1.0 if exact else 0.5)


@pytest.mark.parametrize("type", ["f32", "bf16", "f16", "int8", "int4"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.95])
def test_zeros_are_as_many_as_asked_for_after_rounding_too(type: str, sparsity: float) -> None:
    packed = synthetic.pack("tiny", weights=type, sparsity=sparsity)
    for name, weight in linears(packed).items():
        entries = weight.rows * weight.cols
        assert weight.nnz == entries - round(sparsity * entries), name
        assert weight.type == type
    for name in packed.weights.keys() - linears(packed).keys():
        weight = packed.weights[name]
        assert (weight.format, weight.nnz) == ("dense", weight.rows * weight.cols)
        assert weight.type == ("int8" if type == "int4" else type)


def test_options_are_those_of_convert() -> None:
    def kinds(**options: Any) -> set[tuple[str, str, int]]:
        packed = synthetic.pack("tiny", **options)
        return {(weight.format, weight.type, weight.group) for weight in linears(packed).values()}

    assert kinds() == {("bitmap", "int8", 64)}
    assert kinds(weights="int4", group=32, format="bitmap") == {("bitmap", "int4", 32)}
    assert kinds(sparsity=0.1, format="csr", group=0) == {("csr", "int8", 0)}
    assert kinds(sparsity=0.0) == {("dense", "int8", 64)}
    assert kinds(pattern=(2, 4)) == {("nm", "int8", 64)}
    assert synthetic.pack("tiny", head="bf16").weights["embed"].type == "bf16"
    weight = synthetic.pack("tiny", pattern=(1, 4), weights="int4").weights["layers.1.down"]
    assert weight.pattern == (1, 4)
    assert ((weight.unpack().reshape(-1, 4) != 0).sum(1) == 1).all()


def test_layers_hold_the_same_values_in_memory_of_their_own() -> None:
    for options in ({"sparsity": 0.5}, {"sparsity": 0.95}, {"pattern": (2, 4)}, {"sparsity": 0.0, "weights": "f32"}):
        packed = synthetic.pack("tiny", **options)
        places = set()
        for name, weight in linears(packed).items():
            first = packed.weights[f"layers.0.{name.rpartition('.')[2]}"]
            for key, stream in weight.streams().items():
                np.testing.assert_array_equal(stream, first.streams()[key])
                assert stream.ctypes.data % 64 == 0
                places.add((stream.ctypes.data, name, key))
        assert len({place for place, _, _ in places}) == len(places)


def test_the_seed_decides() -> None:
    values = [synthetic.pack("tiny", seed=seed).weights["layers.1.q"].unpack() for seed in (0, 0, 1)]
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).any()
    packed = synthetic.pack("tiny")
    assert (packed.weights["layers.0.k"].unpack() != packed.weights["layers.0.v"].unpack()).any()


def test_activations_stay_of_one_size() -> None:
    model = synthetic.model("tiny", weights="int8", threads=1)
    logits = model.logits(list(range(64)))
    # The last norm's outputs are of size 1, and so are the rows of the head.
    assert 0.5 < logits.std() < 2
    assert model.decoder.threads == 1
    assert model.generate("any text", max_new_tokens=4) == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "llama-9"}, ["llama-9", "smollm2-135m"]),
        ({"weights": "int2"}, ["weights", "int2"]),
        ({"group": 48}, ["group", "48"]),
        ({"sparsity": 1.0}, ["sparsity", "1.0"]),
        ({"sparsity": 0.5, "pattern": (2, 4)}, ["sparsity", "pattern"]),
        ({"pattern": (5, 4)}, ["pattern", "5:4"]),
        ({"kv": "int3"}, ["tiny", "kv", "int3"]),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(GossamerError) as caught:
        synthetic.model(**{"name": "tiny", **options})
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(weight.nbytes for name, weight in linears(synthetic.pack("tiny")).items() if "layers.0" not in name)
    largest = 320 * 128 * 10
    assert need != largest
    for available, refused in ((max(need, largest), False), (need - 1, True), (largest - 1, True)):
        monkeypatch.setattr(synthetic, "_available_memory", lambda available=available: available)
        if not refused:
            synthetic.pack("tiny")
            continue
        with pytest.raises(GossamerError, match=r"tiny: needs .* GB of memory"):
            synthetic.pack("tiny")
    monkeypatch.setattr(synthetic, "_available_memory", lambda: None)  # a system that does not tell
    synthetic.pack("tiny")


def test_the_system_tells_its_memory() -> None:
    available = synthetic._available_memory()
    assert available is None or available > 1 << 20


def test_bench_of_a_synthetic_model(capsys: pytest.CaptureFixture[str]) -> None:
    line = "bench --synthetic tiny --sparsity 0.75 --format bitmap --weights int4 --head int4 -p 16 -n 4 -r 2"
    line += " --threads 1,2"
    assert main([*line.split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "tiny"
    assert document["synthetic"] == {"sparsity": 0.75, "pattern": None, "seed": 0}
    assert document["weights"] == {"head dense int4": 1, "bitmap int4": 7 * LAYERS}
    assert [(row["test"], row["threads"]) for row in document["rows"]] == [
        ("pp16", 1), ("tg4", 1), ("pp16", 2), ("tg4", 2),
    ]  # fmt: skip
    assert main(line.split()) == 0
    assert capsys.readouterr().out.startswith(f"synthetic tiny: 1 head dense int4, {7 * LAYERS} bitmap int4")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bench m --synthetic tiny", ["--synthetic", "MODEL"]),
        ("bench --synthetic llama-9", ["--synthetic", "llama-9"]),
        ("bench m --sparsity 0.5", ["--sparsity", "MODEL"]),
        ("bench m --pattern 2:4", ["--pattern", "MODEL"]),
        ("bench m --group 32", ["--group", "MODEL"]),
        ("bench m --format csr", ["--format", "MODEL"]),
        ("bench m --head int8", ["--head", "MODEL"]),
        ("bench --synthetic tiny --sparsity 0.5 --pattern 2:4", ["--pattern", "--sparsity"]),
    ],
)
def test_wrong_usage(line: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", ["tiny", "untied", "wide"])
def test_the_same_shape_as_gguf(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    synthetic_gguf = importlib.import_module("synthetic_gguf")
    monkeypatch.setitem(synthetic.CONFIGS, "wide", tiny_config(hidden_size=256, num_attention_heads=4))
    path = tmp_path / "model.gguf"
    synthetic_gguf.write(path, name, kind)
    assert list(tmp_path.iterdir()) == [path]
    checkpoint = open_checkpoint(path)
    sizes = synthetic.CONFIGS[name]
    expected = Sizes.of(family(sizes).describe(sizes))
    found = Sizes.of(family(checkpoint.config).describe(checkpoint.config))
    assert replace(found, norm_eps=0.0) == replace(expected, norm_eps=0.0)
    assert found.norm_eps == np.float32(expected.norm_eps)
    head = "model.embed_tokens.weight" if sizes["tie_word_embeddings"] else "lm_head.weight"
    # The types that llama.cpp's quantizer picks: Q6_K in blocks of 256 where they divide the width.
    head_type = "Q6_K" if (name, kind) == ("wide", "Q4_0") else "Q8_0"
    assert checkpoint.dtype(head) == synthetic_gguf.head_type(path) == head_type
    assert {checkpoint.dtype(tensor) for tensor in checkpoint.names() if tensor.endswith("_proj.weight")} == {kind}
    model = gossamer.load(path, activations="f32")
    assert 0.5 < model.logits(list(range(64))).std() < 2
    assert model.tokenizer.decode(model.tokenizer.encode("any text", special=False)) == "any text"


def test_a_gguf_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    synthetic_gguf = importlib.import_module("synthetic_gguf")
    monkeypatch.setattr(synthetic_gguf, "_draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthetic_gguf.write(tmp_path / "model.gguf", "tiny", "Q4_0")
    assert list(tmp_path.iterdir()) == []
