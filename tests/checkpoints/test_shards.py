from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gossamer.checkpoints import open_checkpoint
from tiny import tiny_config, tiny_llama, tiny_tensors


@pytest.mark.parametrize("case", ["an index beside one file", "a shard of another save"])
def test_files_of_weights_that_are_not_read_are_told(tmp_path: Path, case: str) -> None:
    one = case == "an index beside one file"
    folder = tiny_llama(tmp_path / "m", shards=1 if one else 2)
    other = tiny_llama(tmp_path / "other", seed=5, shards=3)
    for path in other.glob("*.json" if one else "model-00003-*"):
        (folder / path.name).write_bytes(path.read_bytes())
    what = "model.safetensors.index.json: is left out, with its shards: model.safetensors lies beside it"
    if not one:
        what = "model-00003-of-00003.safetensors: is left out: model.safetensors.index.json does not name this shard"
    checkpoint = open_checkpoint(folder)
    assert checkpoint.notes == (f"{folder}/{what}",)
    np.testing.assert_array_equal(
        checkpoint.tensor("model.norm.weight"), tiny_tensors(tiny_config())["model.norm.weight"]
    )
