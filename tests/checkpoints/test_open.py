from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import gossamer
from gossamer.checkpoints import open_checkpoint, write_checkpoint
from gossamer.errors import GossamerError
from tiny import save_safetensors, stored_bytes, tiny_config, tiny_llama, tiny_tensors

IDS = [(37 * i + 11) % 290 for i in range(40)]


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_read_as_stored(tmp_path: Path, dtype: str, shards: int) -> None:
    checkpoint = open_checkpoint(tiny_llama(tmp_path / "m", dtype=dtype, shards=shards, attention_bias=True))
    expected = tiny_tensors(tiny_config(attention_bias=True))
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, values in expected.items():
        assert checkpoint.shape(name) == values.shape
        assert checkpoint.dtype(name) == dtype
        assert stored_bytes(checkpoint.tensor(name), dtype) == stored_bytes(values, dtype)
        assert checkpoint.tensor(name).dtype == np.float32
    assert checkpoint.config["hidden_size"] == 96
    assert checkpoint.tokenizer().has_chat_template


def test_opening_reads_no_values(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    # The map is of the file's pages: what is written to them later is what a late read sees.
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7.5).tobytes())
    assert checkpoint.tensor("lm_head.weight")[-1, -1] == 7.5


def test_a_tied_head_may_be_absent_or_extra(tmp_path: Path) -> None:
    open_checkpoint(tiny_llama(tmp_path / "absent", tie_word_embeddings=True))
    folder = tiny_llama(tmp_path / "extra")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    open_checkpoint(folder)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    for path, words in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "no config.json"),
        (folder / "model.safetensors", "give the folder"),
    ):
        with pytest.raises(GossamerError) as error:
            open_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ")
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "must hold a JSON object"),
        (b"\xff", "not valid JSON"),
        (b"[" * 9999, "JSON"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    folder = tiny_llama(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(GossamerError, match=f"config.json: .*{words}"):
        open_checkpoint(folder)


def test_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", model_type="gpt9")
    with pytest.raises(
        GossamerError, match=r"config\.json: model_type 'gpt9' is not supported; there are: .*gpt2, .*llama"
    ):
        open_checkpoint(folder)


def test_a_shape_that_contradicts_the_config(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    edit_json(folder / "config.json", intermediate_size=161)
    with pytest.raises(GossamerError) as error:
        open_checkpoint(folder)
    name = "model.layers.0.mlp.gate_proj.weight"
    assert str(error.value) == f"{folder}: tensor {name} has shape [160, 96], the config asks for [161, 96]"
    edit_json(folder / "config.json", intermediate_size=160)
    open_checkpoint(folder)  # repaired


def test_a_tensor_that_the_config_asks_for_is_missing(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(GossamerError, match=r"tensor model\.layers\.2\.self_attn\.q_proj\.weight is missing"):
        open_checkpoint(folder)


def test_a_truncated_file_is_refused_and_works_when_repaired(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(GossamerError, match=r"model\.safetensors: truncated: tensor lm_head\.weight"):
        open_checkpoint(folder)
    path.write_bytes(whole)
    open_checkpoint(folder)


def test_missing_weights_and_pickles(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(GossamerError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(GossamerError, match=r"pytorch_model\.bin: is no file of torch\.save"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.bin")
    with pytest.raises(GossamerError, match=r"model\.bin: is not read; use safetensors, or pytorch_model\.bin"):
        open_checkpoint(folder)


SHARD = "model-00001-of-00002.safetensors"
BAD_INDEXES: dict[str, tuple[Any, str]] = {
    "no map": (None, "weight_map is missing"),
    "list": ([], "weight_map is missing"),
    "number": ({"x": 3}, "tensor x lies in 3, which is no file of this folder"),
    "parent": ({"x": "../evil.safetensors"}, "which is no file of this folder"),
    "absolute": ({"x": "/etc/passwd.safetensors"}, "which is no file of this folder"),
    "kind": ({"x": "config.json"}, "which is no file of this folder"),
    "no shard": (
        {"x": "more.safetensors"},
        "more.safetensors: missing; model.safetensors.index.json says that",
    ),
    "no tensor": ({"x": SHARD}, f"{SHARD}: tensor x is missing; model.safetensors.index.json says"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_bad_indexes(tmp_path: Path, case: str) -> None:
    folder = tiny_llama(tmp_path / "m", shards=2)
    weight_map, words = BAD_INDEXES[case]
    edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(GossamerError) as error:
        open_checkpoint(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("suffix", ["compressed", "weight_packed", "weight_scale", "absmax", "layout_numbers"])
def test_parts_of_compressed_tensors_are_told(tmp_path: Path, suffix: str) -> None:
    folder = tiny_llama(tmp_path / "m")
    tensors = tiny_tensors(tiny_config()) | {f"model.layers.0.self_attn.q_proj.{suffix}": np.ones(3, np.float32)}
    save_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(GossamerError, match=rf"q_proj\.{suffix} is a part of what .* stores, and the rest is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("qweight", r"q_proj\.qzeros is missing; .*q_proj\.qweight needs it"),
        ("SCB", r"q_proj\.weight is of type F32 instead of I8"),
    ],
)
def test_parts_that_lack_others_are_told(tmp_path: Path, suffix: str, words: str) -> None:
    folder = tiny_llama(tmp_path / "m")
    tensors = tiny_tensors(tiny_config()) | {f"model.layers.0.self_attn.q_proj.{suffix}": np.ones(3, np.float32)}
    save_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(GossamerError, match=words):
        open_checkpoint(folder)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_llama(tmp_path / "m"))
    for read in (checkpoint.tensor, checkpoint.shape, checkpoint.dtype):
        with pytest.raises(GossamerError, match="tensor nothing is missing"):
            read("nothing")


def logits(folder: Path) -> np.ndarray[Any, Any]:
    return gossamer.load(folder, activations="f32", threads=1).logits(IDS)


def theirs(folder: Path) -> np.ndarray[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0])


def test_a_head_of_its_own_is_used_though_the_config_says_tied(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    np.testing.assert_allclose(logits(folder), theirs(folder), atol=5e-4)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config["tie_word_embeddings"] is False
    (note,) = checkpoint.notes
    assert "tie_word_embeddings is true, and lm_head.weight is stored with values of its own" in note
    tensors = [(name, checkpoint.tensor(name), "f32") for name in checkpoint.names()]
    write_checkpoint(tmp_path / "again", checkpoint.config, tensors, checkpoint)
    assert open_checkpoint(tmp_path / "again").notes == ()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_head_that_is_the_embedding_stays_tied(tmp_path: Path, dtype: str) -> None:
    folder = tiny_llama(tmp_path / "m", tie_word_embeddings=True)
    tensors = tiny_tensors(tiny_config(tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_safetensors(folder / "model.safetensors", tensors, dtype)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config["tie_word_embeddings"] is True
    assert checkpoint.notes == ()


@pytest.mark.parametrize("kept", ["", "self_attn", "q_proj"])
def test_biases_that_the_config_does_not_announce_are_used(tmp_path: Path, kept: str) -> None:
    """With those that are missing taken for zero."""
    overrides = {"attention_bias": True, "mlp_bias": True}
    folder, full = tiny_llama(tmp_path / "m", **overrides), tiny_llama(tmp_path / "full", **overrides)
    tensors = tiny_tensors(tiny_config(**overrides))
    zeroed = {n: v * 0 if n.endswith("bias") and kept not in n else v for n, v in tensors.items()}
    save_safetensors(full / "model.safetensors", zeroed)
    part = {name: values for name, values in tensors.items() if not name.endswith("bias") or kept in name}
    save_safetensors(folder / "model.safetensors", part)
    edit_json(folder / "config.json", attention_bias=None, mlp_bias=False)
    np.testing.assert_allclose(logits(folder), theirs(full), atol=5e-4)
    notes = open_checkpoint(folder).notes
    assert all("the config does not announce" in note for note in notes)
    assert len(notes) == (1 if kept else 2)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.post_feedforward_layernorm.weight",
        "model.layers.0.input_layernorm.bias",
        "model.norm.bias",
        "lm_head.bias",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.sinks",
        "model.layers.0.mlp.bias",
        "score.weight",
    ],
)
def test_a_tensor_that_nobody_takes_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = tiny_llama(tmp_path / "m")
    tensors = tiny_tensors(tiny_config())
    save_safetensors(folder / "model.safetensors", {**tensors, name: np.ones(96, np.float32)})
    with pytest.raises(GossamerError, match=rf"tensor {re.escape(name)} has no place in the model"):
        open_checkpoint(folder)


def test_a_tensor_that_the_index_does_not_list_is_seen(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m", shards=2, attention_bias=True)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    assert sum(name.endswith("bias") for name in places) == 8
    edit_json(index, weight_map={name: file for name, file in places.items() if not name.endswith("bias")})
    assert sorted(open_checkpoint(folder).names()) == sorted(places)
    edit_json(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(GossamerError, match=r"tensor model\.layers\.1\.\S+ has no place in the model"):
        open_checkpoint(folder)


@pytest.mark.parametrize("listed", [True, False])
def test_a_tensor_that_two_shards_have_must_be_the_same(tmp_path: Path, listed: bool) -> None:
    """Readers differ in which of them they take."""
    folder = tiny_llama(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    name, first = next((name, file) for name, file in places.items() if name.endswith("up_proj.weight"))
    second = next(file for file in places.values() if file != first)
    tensors = tiny_tensors(tiny_config())
    if not listed:
        edit_json(index, weight_map={key: file for key, file in places.items() if key != name})
    for factor, words in ((1, None), (2, f"tensor {re.escape(name)} is in {first}, too, with other values")):
        held = {key: tensors[key] for key, file in places.items() if file == second}
        save_safetensors(folder / second, held | {name: tensors[name] * np.float32(factor)})
        if words is None:
            assert name in open_checkpoint(folder).names()
        else:
            with pytest.raises(GossamerError, match=words):
                open_checkpoint(folder)


def test_an_adapter_beside_the_model_is_told(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    assert open_checkpoint(folder).notes == (f"{folder}: the adapter that lies beside the model is left out",)


def test_buffers_of_older_programs_do_no_harm(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(12, np.float32),
        "model.rotary_emb.inv_freq": np.ones(12, np.float32),
        "model.layers.0.attn.bias": np.ones((1, 1, 8, 8), np.float32),
        "model.layers.0.attn.masked_bias": np.float32(-1e4).reshape(()),
    }
    expected = logits(folder)
    save_safetensors(folder / "model.safetensors", tiny_tensors(tiny_config()) | buffers)
    np.testing.assert_array_equal(logits(folder), expected)
    assert open_checkpoint(folder).notes == ()


def test_keys_that_are_not_known_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_llama(tmp_path / "m")
    edit_json(folder / "config.json", mood="good", residual_multiplier=1.0)
    open_checkpoint(folder)
    assert caplog.messages == [f"{folder}/config.json: keys that are not known are left out: mood"]
    edit_json(folder / "config.json", residual_multiplier=0.5)
    with pytest.raises(GossamerError, match=r"config\.json: residual_multiplier is not supported, got 0\.5"):
        open_checkpoint(folder)


def test_a_decoder_that_is_not_causal_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Here False asks for something, and True for nothing."""
    folder = tiny_llama(tmp_path / "m", is_causal=True)
    open_checkpoint(folder)
    assert not caplog.messages
    edit_json(folder / "config.json", is_causal=False)
    with pytest.raises(GossamerError, match=r"config\.json: is_causal is not supported, got False"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "pytorch_model.bin", "chat_template.jinja"]
)
def test_pointers_of_git_lfs_are_told(tmp_path: Path, name: str) -> None:
    folder = tiny_llama(tmp_path / "m")
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 12345\n")
    with pytest.raises(GossamerError, match=rf"{name}: a git-lfs pointer, not the file itself; `git lfs pull`"):
        open_checkpoint(folder).tokenizer()


@pytest.mark.parametrize(
    "sizes",
    [
        {"head_dim": 1 << 24, "num_attention_heads": 1, "num_key_value_heads": 1},
        {"vocab_size": 1 << 24},
        {"num_hidden_layers": 4096},
        {"intermediate_size": 1 << 24},
        {"hidden_size": 1 << 24, "num_attention_heads": 1, "num_key_value_heads": 1},
    ],
)
def test_sizes_are_held_against_the_tensors_before_they_cost_anything(tmp_path: Path, sizes: dict[str, int]) -> None:
    folder = tiny_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | sizes
    (folder / "config.json").write_text(json.dumps(config))
    tracemalloc.start()
    try:
        with pytest.raises(GossamerError, match=r"the config asks for|is missing"):
            open_checkpoint(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_a_context_that_ends_where_frequencies_change_is_told(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 12, "long_factor": [2.0] * 12, "original_max_position_embeddings": 4}
    folder = tiny_llama(tmp_path / "m", rope_scaling={"rope_type": "longrope", **factors})
    (note,) = open_checkpoint(folder).notes
    assert note.startswith(f"{folder}/config.json: the context ends at 4 tokens, and not at 128: beyond, rotary freq")
    with pytest.raises(GossamerError, match=r"the prompt has 5 tokens, and the model's context holds 4$"):
        gossamer.load(folder).logits([1] * 5)


@pytest.mark.parametrize("window", [None, 5, 500])
def test_a_window_does_not_end_the_context(tmp_path: Path, window: int | None) -> None:
    folder = tiny_llama(tmp_path / "m", model_type="mistral" if window else "llama", sliding_window=window)
    assert open_checkpoint(folder).notes == ()
    with pytest.raises(GossamerError, match=r"context holds 128$"):
        gossamer.load(folder).logits([1] * 129)
