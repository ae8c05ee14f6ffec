"""Checkpoints as GGUF files: what is read back, and what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_cases import CASES
from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.gguf_write import write_gguf
from gossamer.cli import main
from gossamer.errors import GossamerError
from tiny import made, tiny_llama

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def described(path: Path) -> arch.Transformer:
    config = open_checkpoint(path).config
    return arch.family(config).describe(config)


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"rope_scaling": LLAMA3}])
def test_what_is_written_is_read_again(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "m", **overrides))
    write_gguf(source, tmp_path / "m.gguf", type="f32")
    file = open_checkpoint(tmp_path / "m.gguf")
    assert sorted(file.names()) == sorted(source.names())
    for name in source.names():
        np.testing.assert_array_equal(file.tensor(name), source.tensor(name))
    ours, theirs = described(tmp_path / "m.gguf"), described(tmp_path / "m")
    assert ours.tensors == theirs.tensors
    frequencies = [one.blocks[0].branches[0].mixer.positions.inv_freq for one in (ours, theirs)]
    np.testing.assert_allclose(*frequencies, rtol=1e-6)
    tokenizers = file.tokenizer(), source.tokenizer()
    for text in ("The thread holds 42 spiders.", "<|im_start|>a  b\n\n<|im_end|>", "don't 🙂"):
        assert tokenizers[0].encode(text) == tokenizers[1].encode(text)
    assert tokenizers[0].eos_ids >= tokenizers[1].eos_ids
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


def test_both_templates_are_written(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    texts = {"default": "D{{ messages | length }}", "tool_use": "T{{ tools | length }}"}
    settings["chat_template"] = [{"name": name, "template": text} for name, text in texts.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    write_gguf(open_checkpoint(folder), tmp_path / "m.gguf", type="f32")
    tokenizer = open_checkpoint(tmp_path / "m.gguf").tokenizer()
    assert (tokenizer.chat_template, tokenizer.tool_template) == (texts["default"], texts["tool_use"])


@pytest.mark.parametrize("case", ["llama", "qwen2"])
def test_transformers_reads_it(tmp_path: Path, case: str) -> None:
    torch = pytest.importorskip("torch", reason="the oracle")
    transformers = pytest.importorskip("transformers", reason="the oracle")
    _, values, _ = CASES[case]
    folder = made(tmp_path / "m", values)
    write_gguf(open_checkpoint(folder), tmp_path / "m.gguf", type="f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        difference = (theirs(ids).logits - expected(ids).logits).abs().max()
    assert difference <= 1e-5 * expected(ids).logits.abs().max()


@pytest.mark.parametrize(("type", "bits"), [("f16", 10), ("bf16", 7), ("q8_0", 7)])
def test_types_of_matrices(tmp_path: Path, type: str, bits: int) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "m"))
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--type", type]) == 0
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == type.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    file = open_checkpoint(tmp_path / "m.gguf")
    name = "model.layers.0.mlp.down_proj.weight"
    values = source.tensor(name)
    assert np.abs(file.tensor(name) - values).max() < np.abs(values).max() * 2.0**-bits


def test_the_command_tells_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export", str(tiny_llama(tmp_path / "m")), str(tmp_path / "m.gguf")]
    assert main([*line, "--json"]) == 0
    size = (tmp_path / "m.gguf").stat().st_size
    assert json.loads(capsys.readouterr().out) == {"written": line[2], "type": "f16", "bytes": size}
    assert main([*line, "--json"]) == 1
    assert capsys.readouterr().out == ""
    assert main([*line, "--force"]) == 0
    assert capsys.readouterr().out == f"written: {line[2]}, {size / 1e6:.1f} MB\n"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "m"))
    with pytest.raises(GossamerError, match=r"must end with \.gguf"):
        write_gguf(source, tmp_path / "m.bin")
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(GossamerError, match="exists already; --force replaces it"):
        write_gguf(source, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    write_gguf(source, tmp_path / "m.gguf", force=True)
    source.config["model_type"] = "opt"
    with pytest.raises(GossamerError, match="model_type 'opt' cannot be written as GGUF"):
        write_gguf(source, tmp_path / "n.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.gguf"]
