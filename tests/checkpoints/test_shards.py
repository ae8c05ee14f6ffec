from __future__ import annotations

import json
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


@pytest.mark.parametrize("case", ["size", "names", "unlisted", "right"])
def test_shards_that_may_be_of_another_save_are_told(tmp_path: Path, case: str) -> None:
    folder = tiny_llama(tmp_path / "m", shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    places, stored = document["weight_map"], sum(4 * values.size for values in tiny_tensors(tiny_config()).values())
    document["metadata"]["total_size"] = stored
    told: tuple[str, ...] = ()
    if case == "size":
        (other,) = sorted(tiny_llama(tmp_path / "other", dtype="bf16", shards=2).glob("model-00002-*"))
        gone = sum(4 * tiny_tensors(tiny_config())[name].size for name, shard in places.items() if shard == second.name)
        second.write_bytes(other.read_bytes())
        what = f"its shards have {stored - gone // 2} bytes of tensors, and it says {stored} (total_size)"
        told = (f"{what}: one may be of another save",)
    elif case == "names":
        document["weight_map"] = {name: shard.replace("2-of-00002", "2-of-00003") for name, shard in places.items()}
        second.rename(folder / "model-00002-of-00003.safetensors")
        told = ("names shards of 00002 and of 00003: they are of several saves",)
    elif case == "unlisted":
        names = [name for name, shard in places.items() if shard == first.name]
        for name in names[1:]:
            del places[name]
        told = (f"does not list {names[1]} of {first.name} and {len(names) - 2} more: they are used",)
    index.write_text(json.dumps(document))
    assert open_checkpoint(folder).notes == tuple(f"{index}: {what}" for what in told)
