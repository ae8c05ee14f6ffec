"""Checkpoints that are written: what others read, and what a failure leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gossamer.checkpoints import Checkpoint, open_checkpoint, write_checkpoint
from gossamer.errors import GossamerError
from gossamer.folders import check_destination
from tiny import stored_bytes, tiny_llama


def zeroed(checkpoint: Checkpoint, dtype: str) -> list[tuple[str, np.ndarray[Any, Any], str]]:
    return [(name, checkpoint.tensor(name) * np.float32(0.5), dtype) for name in checkpoint.names()]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_written_checkpoints_are_read_by_transformers(tmp_path: Path, dtype: str) -> None:
    from transformers import AutoTokenizer

    source = open_checkpoint(tiny_llama(tmp_path / "src", shards=2))
    write_checkpoint(tmp_path / "dst", source.config, zeroed(source, dtype), source)
    again = open_checkpoint(tmp_path / "dst")
    assert again.names() == source.names()
    assert again.config == source.config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), again.tensor(name))
        assert stored_bytes(again.tensor(name), dtype) == stored_bytes(source.tensor(name) * np.float32(0.5), dtype)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dst")
    text = "The thread holds 42 spiders."
    assert tokenizer.encode(text) == source.tokenizer().encode(text)


def test_nothing_is_left_when_the_tensors_fail(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "src"))

    def tensors() -> Any:
        yield "model.norm.weight", source.tensor("model.norm.weight"), "f32"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "dst", source.config, tensors(), source)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_folder_in_use_is_left_as_it_is(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "src"))
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine").write_text("precious")
    with pytest.raises(GossamerError, match="dst: exists already"):
        write_checkpoint(tmp_path / "dst", source.config, zeroed(source, "f32"), source)
    assert [path.name for path in (tmp_path / "dst").iterdir()] == ["mine"]
    (tmp_path / "dst" / "mine").unlink()
    write_checkpoint(tmp_path / "dst", source.config, zeroed(source, "f32"), source)
    open_checkpoint(tmp_path / "dst")


def test_what_lies_beside_the_weights_goes_along(tmp_path: Path) -> None:
    """Tokenizers and processors in any form: `transformers` opens what was written as it opens the source."""
    folder = tiny_llama(tmp_path / "src")
    beside = ("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "normalizer.json")
    for name in (*beside, "processor_config.json", "preprocessor_config.json", "LICENSE.txt", "NOTICE"):
        (folder / name).write_text(f"{{}}{name}")
    source = open_checkpoint(folder)
    write_checkpoint(tmp_path / "dst", source.config, zeroed(source, "f32"), source)
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            assert (tmp_path / "dst" / path.name).read_bytes() == path.read_bytes()
    check_destination(tmp_path / "dst", force=True)  # nothing of it keeps the folder from being replaced


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_what_becomes_wider_is_loaded_as_wide(tmp_path: Path, key: str) -> None:
    folder = tiny_llama(tmp_path / "src", dtype="bf16")
    source = open_checkpoint(folder)
    source.config[key] = source.config.pop("dtype")
    write_checkpoint(tmp_path / "same", source.config, zeroed(source, "bf16"), source)
    assert open_checkpoint(tmp_path / "same").config == source.config
    third = [(name, values / np.float32(3), dtype) for name, values, dtype in zeroed(source, "f32")]
    write_checkpoint(tmp_path / "wider", source.config, third, source)
    assert open_checkpoint(tmp_path / "wider").config == {**source.config, key: "float32"}
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "wider", dtype="auto").state_dict()
    for name, values, _ in third:
        np.testing.assert_array_equal(read[name].numpy(), values)
