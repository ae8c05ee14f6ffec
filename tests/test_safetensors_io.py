from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from gossamer.errors import GossamerError
from gossamer.safetensors_io import SafetensorsFile, SafetensorsWriter, round_to
from mapped import needs_smaps, resident
from tiny import save_safetensors, stored_bytes

RANDOM = np.random.default_rng(5)
VALUES = RANDOM.standard_normal((3, 5)).astype(np.float32)


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_reads_what_is_stored(tmp_path: Path, dtype: str) -> None:
    save_safetensors(tmp_path / "a", {"x": VALUES, "y": -VALUES[0]}, dtype)
    file = SafetensorsFile(tmp_path / "a")
    assert list(file.tensors) == ["x", "y"]
    assert file.info("x").shape == (3, 5)
    assert file.metadata == {"format": "pt"}
    values = file.float32("x")
    assert values.dtype == np.float32
    assert stored_bytes(values, dtype) == stored_bytes(VALUES, dtype)  # exact: the values are already rounded
    np.testing.assert_allclose(values, VALUES, rtol={"f32": 0, "f16": 2**-11, "bf16": 2**-8}[dtype])
    assert file.raw("y").tobytes() == stored_bytes(-VALUES[0], dtype)


def test_views_do_not_copy_and_outlive_the_file_object(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "a", ["x"]) as writer:
        writer.add("x", VALUES)
    values = SafetensorsFile(tmp_path / "a").float32("x")
    assert not values.flags.writeable
    assert not values.flags.owndata
    np.testing.assert_array_equal(values, VALUES)


BAD_HEADERS = {
    "no object": (b"[]", b"", "does not begin with"),
    "no JSON": (b"{nope", b"", "bad header"),
    "no UTF-8": (b'{"\xff": 1}', b"", "bad header"),
    "too deep": (b'{"a":' + b"[" * 100_000, b"", "bad header"),
    "duplicate": (b'{"x": 1, "x": 2}', b"", "'x' stands twice"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "entry": ({"x": 3}, b"", "tensor x: the header entry"),
    "extra key": ({"x": {**entry(), "more": 1}}, bytes(8), "tensor x: the header entry"),
    "type": ({"x": entry(dtype="F7")}, bytes(8), "tensor x: unknown type 'F7'"),
    "type of type": ({"x": entry(dtype=[1])}, bytes(8), "tensor x: unknown type"),
    "negative shape": ({"x": entry(shape=[-2])}, bytes(8), "tensor x: bad shape"),
    "boolean shape": ({"x": entry(shape=[True], offsets=[0, 4])}, bytes(4), "tensor x: bad shape"),
    "huge shape": ({"x": entry(shape=[1 << 40, 1 << 40])}, bytes(8), "tensor x: F32"),
    "many dimensions": ({"x": entry(shape=[1] * 9)}, bytes(8), "tensor x: bad shape"),
    "offsets": ({"x": entry(offsets=[0, 8, 9])}, bytes(8), "tensor x: bad data_offsets"),
    "float offsets": ({"x": entry(offsets=[0, 8.0])}, bytes(8), "tensor x: bad data_offsets"),
    "backward": ({"x": entry(offsets=[8, 0])}, bytes(8), "tensor x: F32 [2] needs 8 bytes, data_offsets give -8"),
    "size": ({"x": entry(offsets=[0, 4])}, bytes(4), "tensor x: F32 [2] needs 8 bytes, data_offsets give 4"),
    "beyond the end": ({"x": entry()}, bytes(7), "truncated: tensor x"),
    "hole": ({"x": entry(), "y": entry(offsets=[12, 20])}, bytes(20), "tensor y: leaves a hole"),
    "hole in front": ({"x": entry(offsets=[4, 12])}, bytes(12), "tensor x: leaves a hole"),
    "overlap": ({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12), "tensor y: overlaps"),
    "trailing": ({"x": entry()}, bytes(9), "1 bytes follow"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_told_with_file_and_tensor(tmp_path: Path, case: str) -> None:
    header, data, words = BAD_HEADERS[case]
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(GossamerError) as error:
        SafetensorsFile(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "whole", {"x": VALUES})
    whole = (tmp_path / "whole").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(GossamerError, match="truncated"):
            SafetensorsFile(tmp_path / "cut")


def test_absurd_header_length_is_refused_without_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(GossamerError, match="not a safetensors file"):
        SafetensorsFile(tmp_path / "a")


def test_missing_file_and_missing_tensor(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="No such file"):
        SafetensorsFile(tmp_path / "none")
    save_safetensors(tmp_path / "a", {"x": VALUES})
    with pytest.raises(GossamerError, match="tensor y is missing"):
        SafetensorsFile(tmp_path / "a").float32("y")


@needs_smaps
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_what_was_copied_out_of_a_file_takes_no_memory(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "large.safetensors"
    values = np.arange(4096 * 1024, dtype=np.float32).reshape(4096, 1024) / 1e5
    with SafetensorsWriter(path, ["w"]) as writer:
        writer.add("w", round_to(values, dtype), {"f16": "F16", "bf16": "BF16"}[dtype])
    file = SafetensorsFile(path)
    whole = file.float32("w")
    np.testing.assert_array_equal(file.float32("w", slice(1000, 3001)), whole[1000:3001])
    np.testing.assert_array_equal(file.float32("w"), whole)  # again
    assert resident(path) < 1 << 18  # of 8 MiB


def test_integers_are_no_weights(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "a", ["x"]) as writer:
        writer.add("x", np.arange(4))
    with pytest.raises(GossamerError, match="tensor x is of type I64"):
        SafetensorsFile(tmp_path / "a").float32("x")


def test_writer_aligns_and_the_reference_library_reads_it(tmp_path: Path) -> None:
    tensors = {
        "bytes": np.arange(7, dtype=np.uint8),
        "words": np.array([1, 2**63 + 1], np.uint64),
        "scales": np.array([[0.5, -2.0, 65504.0]], np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "lanes": np.array([65535], np.uint16),
        "matrix": VALUES.T,  # not contiguous
    }
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, tensors, metadata={"k": "v"}) as writer:
        for name, values in tensors.items():
            writer.add(name, values)
    own = SafetensorsFile(path)
    assert list(own.tensors) == list(tensors)
    assert {info.start % 64 for info in own.tensors.values()} == {0}
    assert own.metadata == {"k": "v"}
    with safe_open(path, "np") as reference:
        assert set(tensors) <= set(reference.keys())
        for name, values in tensors.items():
            np.testing.assert_array_equal(reference.get_tensor(name), values)
            np.testing.assert_array_equal(own.raw(name), values)
            assert own.raw(name).dtype == values.dtype
            assert own.raw(name).flags.aligned


def test_names_of_any_length_fit_the_header(tmp_path: Path) -> None:
    names = ["ü" * 3000, 'quote"', *(f"n{i}" for i in range(50))]
    with SafetensorsWriter(tmp_path / "a", names) as writer:
        for name in names:
            writer.add(name, np.ones((1,) * 8, np.uint8))
    assert list(SafetensorsFile(tmp_path / "a").tensors) == names


def test_writer_refuses_unannounced_and_repeated_names(tmp_path: Path) -> None:
    for name in ("x", "y"):
        with SafetensorsWriter(tmp_path / name, ["x"]) as writer:
            writer.add("x", VALUES)
            with pytest.raises(ValueError, match=f"tensor {name} was not announced, or comes twice"):
                writer.add(name, VALUES)
        assert list(SafetensorsFile(tmp_path / name).tensors) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_an_error_and_the_old_file_stays(tmp_path: Path, error: type[BaseException]) -> None:
    save_safetensors(tmp_path / "a", {"old": VALUES})

    def write() -> None:
        with SafetensorsWriter(tmp_path / "a", ["x"]) as writer:
            writer.add("x", VALUES)
            raise error

    with pytest.raises(error):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert list(SafetensorsFile(tmp_path / "a").tensors) == ["old"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SafetensorsWriter(tmp_path / "a", ["x"])

    def full(_: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        write = staticmethod(full)
        close = writer._file.close

    monkeypatch.setattr(writer, "_file", Full)
    with pytest.raises(GossamerError, match=r"a: cannot write: No space left on device"), writer:
        writer.add("x", VALUES)
    assert list(tmp_path.iterdir()) == []


def test_a_real_limit_on_the_file_size_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import numpy as np, sys\n"
        "from gossamer.errors import GossamerError\n"
        "from gossamer.safetensors_io import SafetensorsWriter\n"
        "try:\n"
        "    with SafetensorsWriter(sys.argv[1], ['x']) as writer:\n"
        "        writer.add('x', np.zeros(1 << 20, np.uint8))\n"
        "except GossamerError as error:\n"
        "    print(error)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path / 'a'}: cannot write: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match=r"none/a: cannot write: No such file or directory"):
        SafetensorsWriter(tmp_path / "none" / "a", [])


def test_rounding_to_bf16_is_to_nearest_even() -> None:
    bits = np.array(
        [0x3F800000, 0x3F808000, 0x3F808001, 0x3F818000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x80000000], np.uint32
    )
    expected = [0x3F80, 0x3F80, 0x3F81, 0x3F82, 0x7F80, 0xFF80, 0x7F80, 0x8000]
    assert round_to(bits.view(np.float32), "bf16").tolist() == expected
    nans = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan((round_to(nans, "bf16").astype(np.uint32) << 16).view(np.float32)).all()


def test_rounding_to_f16_and_f32() -> None:
    values = np.array([1.0, 1e6, -1e-9], np.float32)
    assert round_to(values, "f16").tolist() == [1.0, np.inf, 0.0]
    assert round_to(values, "f32").tolist() == values.tolist()
