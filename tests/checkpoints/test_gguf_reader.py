"""Lengths in a GGUF file are held against the file before anything is made of them."""

from __future__ import annotations

import re
import tracemalloc
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import pytest
from packaging.requirements import Requirement

from gguf_files import write_gguf
from gossamer.checkpoints import gguf_reader, open_checkpoint
from gossamer.errors import GossamerError

FILLER = 16 << 20


def text(value: str) -> bytes:
    return len(value).to_bytes(8, "little") + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + kind.to_bytes(4, "little") + value


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def header(keys: list[bytes], tensors: int = 0, count: int | None = None) -> bytes:
    return b"GGUF" + number(3, 4) + number(tensors) + number(len(keys) if count is None else count) + b"".join(keys)


def listed(kind: int, count: int) -> bytes:
    return key("list", 9, number(kind, 4) + number(count))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "numbers beyond the end": (header([listed(5, 1 << 40)]), "truncated"),
    "texts beyond the end": (header([listed(8, 1 << 40)]), "truncated"),
    "empty texts": (
        header([listed(8, (1 << 21) - 64)]),
        "architecture None is not supported",
    ),  # the zeros that follow are all the list
    "lists of lists": (header([listed(9, 1 << 20)]), "a list of lists"),
    "unknown type": (header([listed(99, 4)]), "not a valid GGUF file"),
    "flags as the whole rest": (header([listed(7, FILLER - 512)]), "16776704 entries, more than 4194304 in all"),
    "flags of several lists": (
        header([listed(7, 3 << 20) + bytes(3 << 20), listed(7, 3 << 20)]),
        "3145728 entries, more than 4194304 in all",
    ),
    "a text as long as the rest": (header([key("text", 8, number(1 << 30))]), "a text of 1073741824 bytes"),
    "keys": (header([], count=1 << 20), "1048576 keys, more than 65536"),
    "endless keys": (header([], count=1 << 63), "truncated"),
    "tensors": (header([], tensors=1 << 19), "524288 tensors, more than 16384"),
    "endless tensors": (header([], tensors=1 << 63), "truncated"),
    "empty tensors": (header([], tensors=1 << 14), "not a valid GGUF file"),
    "dimensions": (header([], tensors=1) + text("t") + number(1 << 20, 4), "1048576 dimensions"),
    "a huge name": (header([key("n" * 1000, 99, b"")]), "not a valid GGUF file"),
    "a version of tomorrow": (b"GGUF" + number(9, 4), "not a valid GGUF file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_lengths_cost_nothing(tmp_path: Path, case: str) -> None:
    start, words = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(start)
    with path.open("r+b") as file:
        file.truncate(FILLER)  # zeros
    tracemalloc.start()
    try:
        with pytest.raises(GossamerError) as error:
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert peak < 8 * FILLER


def test_one_wrong_bit_in_the_length_of_the_tokens(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", num_hidden_layers=1)
    whole = bytearray(path.read_bytes())
    for name in (b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"tokenizer.ggml.merges"):
        place = whole.index(name) + len(name) + 8
        for bit in range(0, 64, 3):
            changed = bytearray(whole)
            changed[place + bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            with pytest.raises(GossamerError):
                open_checkpoint(path).tokenizer()


def test_keys_of_every_type_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values: dict[str, Any] = {
        "uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 1 << 31, "int32": -(1 << 30),
        "uint64": 1 << 63, "int64": -(1 << 62), "float32": 0.5, "float64": 0.1, "bool": True, "string": "wört",
    }  # fmt: skip
    for name, value in values.items():
        getattr(writer, f"add_{name}")(name, value)
    lists: dict[str, list[Any]] = {"texts": ["a", "", "ö"], "ints": [1, -2], "reals": [0.5], "flags": [True, False]}
    for name, items in lists.items():
        writer.add_array(name, items)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    keys, tensors = gguf_reader.read(tmp_path / "m.gguf")
    assert {name: keys[name] for name in (*values, *lists)} == values | lists
    assert tensors == {}


@pytest.mark.parametrize("name", sorted(gguf_reader._CHECKS))
def test_a_reader_that_leaves_out_a_check_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", num_hidden_layers=1)
    original = gguf_reader._reader_class

    def without() -> Any:
        reader = original()
        delattr(reader, name)  # as if the package called another method for this
        return reader

    monkeypatch.setattr(gguf_reader, "_reader_class", without)
    if name == "_get_field_parts":  # whose lists the rest would not know; the package's are not read at all
        monkeypatch.setattr(gguf_reader, "_value", lambda _: None)
    with pytest.raises(GossamerError, match=re.escape(f"reads files without {name}, where they are checked")):
        gguf_reader.read(path)


def test_the_package_is_bounded_and_the_one_at_hand_within() -> None:
    found = [Requirement(text) for text in metadata.requires("gossamer") or ()]
    (bound,) = [one.specifier for one in found if one.name == "gguf" and one.marker is None]
    assert set(vars(gguf.GGUFReader)) >= gguf_reader._CHECKS
    assert metadata.version("gguf") in bound
    assert any(part.operator in ("<", "<=") for part in bound), "a later version may call other methods"
