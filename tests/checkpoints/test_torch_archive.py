"""Files of torch.save: tensors as they are, and anything that could run refused by its name."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.checkpoints.torch_archive import floats, read_archive
from gossamer.errors import GossamerError

torch = pytest.importorskip("torch", reason="writes the files")


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
)
def test_tensors_are_what_was_saved(dtype: str, tmp_path: Path) -> None:
    values = (torch.arange(24).reshape(2, 3, 4) - 7).to(getattr(torch, dtype))
    inner = torch.nn.Parameter(torch.ones(3))
    state = collections.OrderedDict(
        a=values,
        part=values[1],
        none=values[:, :0],
        scalar=values[0, 0, 0],
        p=inner,
        turned=values.permute(2, 0, 1)[1:],
    )
    state._metadata = {"version": 1}  # type: ignore[attr-defined]
    torch.save({"state": state, "list": [1, 2.5, "x", None, True, (3,)], "n": np.int64(-9)}, tmp_path / "x.bin")
    found = read_archive(tmp_path / "x.bin")
    assert (found["list"], found["n"]) == ([1, 2.5, "x", None, True, (3,)], -9)
    for name, tensor in state.items():
        expected = tensor.detach().float().numpy() if dtype == "bfloat16" else tensor.detach().numpy()
        np.testing.assert_array_equal(floats(found["state"][name]), expected)
        assert found["state"][name].shape == tuple(tensor.shape)


class Calls:
    """What runs something when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "true"), "system"),
        ((eval, "1"), "__builtin__.eval"),
        ((getattr, "a", "b"), "__builtin__.getattr"),
        ((torch.load, "x"), "torch.serialization.load"),
        ((np.array, [1]), "array"),
        ((np.dtype, "O"), "numpy.dtype('O')"),
        ((collections.OrderedDict, [("a", 1)]), "collections.OrderedDict with arguments"),
        ((bytearray, 10), "__builtin__.bytearray"),
    ],
)
def test_whatever_else_a_pickle_names_is_refused(call: Any, name: str, tmp_path: Path) -> None:
    torch.save({"diffs": [Calls(*call)]}, tmp_path / "x.bin")
    with pytest.raises(GossamerError) as error:
        read_archive(tmp_path / "x.bin")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def rewrite(path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Changes files of an archive, by the last part of their names."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(held)).split("/")[0]
    held |= {f"{root}/{name}": data for name, data in change.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in held.items():
            if data is not None:
                archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data/0": b"123"}, "has a storage 0 of 3 bytes for 6 values"),
        ({"data/0": None}, "lacks "),
        ({"data.pkl": None}, "holds no pickle of torch"),
        ({"byteorder": b"big"}, "is not little-endian"),
        ({"data.pkl": b"\x80\x02cos\nsystem\n."}, "asks for os.system"),
        ({"data.pkl": b"\x80\x02N"}, "a broken pickle"),
        ({"data.pkl": pickle.dumps("x" * 9)[:-5]}, "a broken pickle"),
        ({"data.pkl": b"\x80\x02\x82\x07."}, "a broken pickle: unregistered extension code 7"),
    ],
    ids=lambda value: f"{value}"[:40],
)
def test_broken_archives_are_one_line(change: dict[str, bytes | None], words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(2, 3)}, path)
    rewrite(path, change)
    with pytest.raises(GossamerError) as error:
        read_archive(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_nothing_is_unpacked_that_torch_would_not_pack(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(1000)}, path)
    rewrite(path, {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(GossamerError, match="compressed or encrypted, which torch never does"):
        read_archive(path)
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(GossamerError, match=r"no file of torch\.save, or of one before version 1\.6"):
        read_archive(path)


def test_tensors_stay_inside_their_storage(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(4, 4)}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert pickled.count(b"K\x04K\x04") == 1  # its size
    for size, words in ((b"K\x05K\x04", "reaches beyond its storage"), (b"K\x04N", "whose size is none")):
        torch.save({"a": torch.ones(4, 4)}, path)
        rewrite(path, {"data.pkl": pickled.replace(b"K\x04K\x04", size)})
        with pytest.raises(GossamerError, match=words):
            read_archive(path)
    assert io.BytesIO(pickled).read(1) == b"\x80"
