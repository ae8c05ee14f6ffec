"""pytorch_model.bin, whole and in shards: the checkpoint that safetensors of the same tensors are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gossamer
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from tiny import tiny_llama

torch = pytest.importorskip("torch", reason="writes the files")
safetensors = pytest.importorskip("safetensors.torch", reason="reads the other ones")


def bins(folder: Path, dtype: str, shards: int = 1) -> Path:
    """A tiny checkpoint whose tensors lie in files of torch.save."""
    path = tiny_llama(folder, dtype=dtype)
    tensors = safetensors.load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, path / "pytorch_model.bin")
        return path
    names = list(tensors)
    places = {name: f"pytorch_model-{at % shards + 1:05}-of-{shards:05}.bin" for at, name in enumerate(names)}
    for shard in sorted(set(places.values())):
        torch.save({name: tensors[name] for name in names if places[name] == shard}, path / shard)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return path


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_tensors_are_those_of_safetensors(tmp_path: Path, dtype: str, shards: int) -> None:
    ours, theirs = (
        open_checkpoint(bins(tmp_path / "a", dtype, shards)),
        open_checkpoint(tiny_llama(tmp_path / "b", dtype=dtype)),
    )
    assert sorted(ours.names()) == sorted(theirs.names())
    for name in theirs.names():
        assert (ours.shape(name), ours.dtype(name)) == (theirs.shape(name), theirs.dtype(name))
        np.testing.assert_array_equal(ours.tensor(name), theirs.tensor(name))


def test_it_is_pruned_packed_and_run(tmp_path: Path) -> None:
    source = bins(tmp_path / "m", "bf16")
    gossamer.prune(source, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    gossamer.convert(tmp_path / "pruned", tmp_path / "packed", weights="int8")
    assert gossamer.load(tmp_path / "packed").generate("The spider", chat=False, max_new_tokens=2) is not None


def test_safetensors_come_first(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"nothing")
    assert open_checkpoint(folder).names()


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1",)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"model.norm.weight": Runs()}, "asks for __builtin__.eval, which is no tensor and no container"),
        ({"model.norm.weight": 3}, "holds 'model.norm.weight', which is no tensor"),
        ([torch.ones(2)], "holds no tensors by name"),
        ({}, "holds no tensors by name"),
    ],
)
def test_other_contents_are_refused_by_name(tmp_path: Path, held: object, words: str) -> None:
    folder = bins(tmp_path / "m", "f32")
    torch.save(held, folder / "pytorch_model.bin")
    with pytest.raises(GossamerError) as error:
        open_checkpoint(folder)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{folder / 'pytorch_model.bin'}: ")


def test_truncated_files_are_one_line(tmp_path: Path) -> None:
    folder = bins(tmp_path / "m", "f32")
    data = (folder / "pytorch_model.bin").read_bytes()
    for size in (0, 3, 100, len(data) // 2, len(data) - 30):
        (folder / "pytorch_model.bin").write_bytes(data[:size])
        with pytest.raises(GossamerError, match=r"pytorch_model\.bin: "):
            open_checkpoint(folder)
