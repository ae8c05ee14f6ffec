from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

import gossamer
from gguf_files import write_gguf
from gossamer import _core
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.generation.ready import cache_bytes
from gossamer.loading import load, locate, open_packed
from gossamer.packing.convert import convert
from gossamer.packing.replan import PLANNED_FOR, this_processor
from gossamer.zoo import builtin
from tiny import tiny_llama

TOKENS = list(range(3, 40))


def test_every_source_gives_the_same_model(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", sparsity=0.5)
    convert(folder, tmp_path / "packed", weights="f32")
    file = write_gguf(tmp_path / "m.gguf")
    expected = load(folder, activations="f32").logits(TOKENS)
    assert expected.shape == (len(TOKENS), 320)
    np.testing.assert_allclose(load(str(tmp_path / "packed"), activations="f32").logits(TOKENS), expected, atol=5e-4)
    dense = tiny_llama(tmp_path / "dense")
    np.testing.assert_allclose(load(file).logits(TOKENS), load(dense).logits(TOKENS), atol=5e-4)


@pytest.mark.parametrize(("stored", "weights", "expected"), [("bf16", None, "bf16"), ("f16", "int4", "int4")])
def test_checkpoints_are_packed_in_memory(tmp_path: Path, stored: str, weights: str | None, expected: str) -> None:
    model = load(tiny_llama(tmp_path / "m", dtype=stored), weights=weights)
    assert model.weights["layers.0.q"].type == expected
    found = {
        "name": "m",
        "family": "llama",
        "source": "m",
        "notes": [],
        "path": str(tmp_path / "m"),
        PLANNED_FOR: this_processor(),
        "config": open_checkpoint(tmp_path / "m").config,
    }
    config = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert model.info == {**found, "config": config}  # which adapters are read with
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_options_reach_the_engine(tmp_path: Path) -> None:
    model = load(tiny_llama(tmp_path / "m"), threads=1, kv="f16")
    assert (model.decoder.threads, model.decoder.kv, model.decoder.kv_limit) == (1, "f16", 0)
    limited = load(tmp_path / "m", kv_limit=1 << 20)
    assert limited.decoder.kv_limit == 1 << 20
    with pytest.raises(GossamerError, match="the KV cache is at its limit"):
        load(tmp_path / "m", kv_limit=1).logits([3])
    assert gossamer.load is load


def test_an_automatic_cache_is_bf16_where_pairs_are_multiplied_and_inputs_are_rounded_anyway(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    narrow = "bf16" if _core.isa() in ("avx512_bf16", "amx") else "f32"
    assert load(folder, kv="auto", weights="int8").decoder.kv == narrow
    assert load(folder, kv="auto").decoder.kv == "f32"
    assert load(folder, kv="auto", weights="int8", activations="f32").decoder.kv == "f32"


def test_an_automatic_cache_is_f16_where_a_full_context_outweighs_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tiny_llama(tmp_path / "long", max_position_embeddings=4096)
    narrow = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}
    windows = tiny_llama(tmp_path / "windows", max_position_embeddings=4096, **narrow)
    for isa, kv in (("avx2", "f16"), ("avx512_vbmi2", "f16"), ("avx512_bf16", "bf16"), ("scalar", "f32")):
        monkeypatch.setattr(_core, "isa", lambda isa=isa: isa)
        assert load(long, kv="auto", weights="int8").decoder.kv == kv
        assert load(long, kv="auto", weights="int8", activations="f32").decoder.kv == "f32"
        assert load(windows, kv="auto", weights="int8").decoder.kv == ("bf16" if kv == "bf16" else "f32")
    assert cache_bytes(open_packed(windows).config) == 64 * 2 * 2 * 24 * 4 * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "device must be one of cpu, cuda, got 'tpu'"),
        ({"kv": "int3"}, "kv must be one of auto, f32, f16, bf16, int8, got 'int3'"),
        ({"activations": "x"}, "activations must be one of auto, f32, bf16, a8"),
        ({"weights": "int2"}, "weights must be one of None, auto, f32"),
        ({"kv_limit": -1}, "kv_limit must be at least 0, got -1"),
        ({"kv_limit": True}, "kv_limit must be a whole number, got True"),
        ({"kv_limit": 1e9}, "kv_limit must be a whole number, got 1000000000.0"),
        ({"kv_limit": 1, "device": "cuda"}, "kv_limit is for the CPU"),
        ({"kv": "int8", "device": "cuda"}, "kv int8 is for the CPU"),
        ({"threads": -1}, "threads must be from 0 to 1024, got -1"),
        ({"threads": 3_000_000_000}, "threads must be from 0 to 1024, got 3000000000"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GossamerError, match=words):
        load(tiny_llama(tmp_path / "m"), **options)


def test_packed_weights_keep_their_type(tmp_path: Path) -> None:
    convert(tiny_llama(tmp_path / "m"), tmp_path / "packed")
    with pytest.raises(GossamerError, match="packed already; weights=int4 is for checkpoints"):
        load(tmp_path / "packed", weights="int4")


@pytest.mark.parametrize("name", ["nothing", "./nothing", "a/b/c", "/none/at/all", "dir/model.gguf", "org/na me", ""])
def test_names_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GossamerError) as error:
        load(name)
    text = str(error.value)
    assert text.startswith(f"{name}: no such file or folder, no built-in model (smollm2-135m-instruct, ")
    assert "hub id (org/name)" in text


def test_hub_ids_are_fetched_without_pickles_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "m")
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert locate("some-org/tiny_llama.v1") == folder
    assert asked["name"] == "some-org/tiny_llama.v1"
    files = [
        "model.safetensors",
        "config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "model-1.safetensors",
        "low_rank/adapter_model.safetensors",
        "low_rank/adapter_config.json",
    ]
    others = ["pytorch_model.bin", "modeling.py", "onnx/config.json", "consolidated.safetensors", "README.md"]
    others += ["lora/adapter_model.safetensors"]
    options = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(files + others, **options)) == files


def test_a_local_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert locate("org/name") == Path("org/name")


@pytest.mark.parametrize("error", [ValueError("We cannot\nread"), RuntimeError("odd")])
def test_a_hub_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GossamerError, match="org/name: no such file or folder, and the hub does not") as raised:
        load("org/name")
    assert "\n" not in str(raised.value)


def test_built_in_names_go_to_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "provide", lambda name, _progress: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in builtin.names():
        assert locate(name) == tmp_path / name


def test_an_unsupported_decoder_is_told_with_its_file(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", model_type="nothing")
    with pytest.raises(GossamerError, match=r"m/config\.json: model_type 'nothing' is not supported"):
        load(folder)
