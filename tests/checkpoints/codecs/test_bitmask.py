from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitmask_files import Parts, compress, sparse_checkpoint, write
from gossamer.checkpoints import open_checkpoint, write_checkpoint
from gossamer.checkpoints.codecs import StoredTensor, Tensors, decode
from gossamer.errors import GossamerError
from gossamer.safetensors_io import SafetensorsFile, round_to


def decoded(folder: Path, parts: Parts) -> Tensors:
    file = SafetensorsFile(write(folder / "a", {f"m.{part}": data for part, data in parts.items()}))
    tensors = Tensors((name, StoredTensor(file, name)) for name in file.tensors)
    decode(tensors, folder, {})
    return tensors


def test_golden_vector(tmp_path: Path) -> None:
    values = np.zeros((2, 16), np.float32)
    values[0, [0, 3, 5, 7, 8, 9, 14]] = range(1, 8)
    values[1, [4, 7, 11, 12, 14]] = range(8, 13)
    parts = {
        "bitmask": np.array([[169, 67], [144, 88]], np.uint8),
        "compressed": np.arange(1, 13, dtype=np.float32),
        "row_offsets": np.array([0, 7], np.int64),
        "shape": np.array([2, 16], np.int64),
    }
    for part, data in compress(values).items():
        np.testing.assert_array_equal(data, parts[part])
    found = decoded(tmp_path, parts)
    np.testing.assert_array_equal(found["m.weight"].float32(), values)
    assert list(found) == ["m.weight"]


@pytest.mark.parametrize("kind", ["everything", "modules", "2:4"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_old_sparse_checkpoints_are_read_as_dense_ones(tmp_path: Path, kind: str, dtype: str) -> None:
    folder, dense = sparse_checkpoint(tmp_path / "m", kind, dtype)
    checkpoint = open_checkpoint(folder)
    assert sorted(checkpoint.names()) == sorted(dense)
    for name, values in dense.items():
        assert checkpoint.shape(name) == values.shape
        assert checkpoint.dtype(name) == dtype
        rounded = round_to(values, dtype)
        expected = (rounded.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else rounded
        np.testing.assert_array_equal(checkpoint.tensor(name), expected)


def test_written_again_it_is_plain(tmp_path: Path) -> None:
    folder, dense = sparse_checkpoint(tmp_path / "m", "modules")
    source = open_checkpoint(folder)
    config = {**source.config, "quantization_config": {"sparsity_config": {"format": "sparse-bitmask"}}}
    write_checkpoint(tmp_path / "dst", config, ((n, source.tensor(n), "f32") for n in source.names()), source)
    again = open_checkpoint(tmp_path / "dst")
    assert again.config == source.config
    assert sorted(SafetensorsFile(tmp_path / "dst" / "model.safetensors").tensors) == sorted(dense)


P = "model.layers.0.self_attn.q_proj"
BAD: dict[str, tuple[str, Any, str]] = {
    "no values": ("compressed", None, f"tensor {P}.compressed is missing"),
    "no shape": ("shape", None, f"tensor {P}.shape is missing"),
    "mask": ("bitmask", lambda mask: mask[:, :-1], f"tensor {P}.bitmask has shape [96, 11], which does not fit"),
    "mask type": ("bitmask", lambda mask: mask.astype(np.int8), f"tensor {P}.bitmask is of type I8"),
    "three sizes": ("shape", lambda _: np.array([96, 96, 1]), f"tensor {P}.shape [96, 96, 1] is no matrix"),
    "negative": ("shape", lambda _: np.array([-96, 96]), f"tensor {P}.shape [-96, 96] is no matrix"),
    "huge": ("shape", lambda _: np.array([1 << 62, 96]), "is no matrix or vector"),
    "tail bits": ("shape", lambda _: np.array([96, 95]), "has shape [96, 95], the config asks for [96, 96]"),
    "values": ("compressed", lambda values: values[:-1], f"tensor {P}.compressed has"),
    "offsets": ("row_offsets", lambda offsets: offsets + 1, f"tensor {P}.row_offsets does not count"),
    "offsets type": ("row_offsets", lambda offsets: offsets.astype(np.int32), f"tensor {P}.row_offsets is of type I32"),
    "no offsets": ("row_offsets", None, f"tensor {P}.bitmask does not keep two of every four"),
}


@pytest.mark.parametrize("case", BAD)
def test_parts_that_contradict_each_other(tmp_path: Path, case: str) -> None:
    part, change, words = BAD[case]
    folder, _ = sparse_checkpoint(tmp_path / "m", "modules")
    path = folder / "model.safetensors"
    file = SafetensorsFile(path)
    tensors: Parts = {name: np.array(file.raw(name)) for name in file.tensors}
    value = tensors.pop(f"{P}.{part}")
    if change is not None:
        tensors[f"{P}.{part}"] = change(value)
    write(path, tensors)

    def read() -> None:
        open_checkpoint(folder).tensor(f"{P}.weight")

    with pytest.raises(GossamerError) as error:
        read()
    assert words in str(error.value)
    assert str(folder) in str(error.value)


def test_bits_behind_the_last_column(tmp_path: Path) -> None:
    parts = compress(np.array([[1.0, 0.0, 2.0]], np.float32))
    parts["bitmask"][0, 0] |= 0x80
    found = decoded(tmp_path, parts)
    with pytest.raises(GossamerError, match=r"tensor m\.bitmask has bits set behind the last column"):
        found["m.weight"].float32()
