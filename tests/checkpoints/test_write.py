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
