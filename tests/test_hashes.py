"""Checksums: a changed file is told, and one that was checked is not read again while size and time stay."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import gossamer
from gossamer import GossamerError, hashes
from gossamer.cli import main
from gossamer.hashes import is_intact, sampled_sha256, sha256
from gossamer.packing.convert import convert
from gossamer.packing.folder import changed_files, read_packed
from packed import read_document, write_document
from tiny import tiny_llama

DIGEST = hashlib.sha256(b"what it was").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"what it was")
    return path


def test_a_file_is_read_once_a_version(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    monkeypatch.setattr(hashes, "sha256", lambda path: reads.append(path) or sha256(path))
    assert is_intact(file, DIGEST)
    assert is_intact(file, DIGEST)
    assert len(reads) == 1
    monkeypatch.setattr(gossamer, "__version__", "tomorrow's")
    assert is_intact(file, DIGEST)
    assert len(reads) == 2


def test_changes_are_seen_by_size_and_time(file: Path) -> None:
    assert is_intact(file, DIGEST)
    stat = file.stat()
    file.write_bytes(b"what it WAS")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not is_intact(file, DIGEST)
    file.write_bytes(b"longer than what it was")
    assert not is_intact(file, DIGEST)
    file.unlink()
    assert not is_intact(file, DIGEST)


@pytest.mark.parametrize("garbage", ["", "[]", "{", '{"file": 7}'])
def test_a_garbled_record_is_no_proof(file: Path, garbage: str) -> None:
    (file.parent / "verified.json").write_text(garbage)
    assert is_intact(file, DIGEST)
    file.write_bytes(b"other")
    (file.parent / "verified.json").write_text(garbage)
    assert not is_intact(file, DIGEST)


def test_packed_folders_carry_checksums_that_inspect_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "packed"
    convert(tiny_llama(tmp_path / "source", sparsity=0.5), folder)
    assert changed_files(folder) == {path.name: False for path in folder.iterdir()}
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert "weights.safetensors: ok" in capsys.readouterr().out
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["inspect", str(folder), "--verify"]) == 1
    told = capsys.readouterr()
    assert "weights.safetensors: changed" in told.out
    assert "1 of" in told.err
    (folder / "tokenizer.json").unlink()
    assert main(["inspect", str(folder), "--verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["changed"]["tokenizer.json"]


def test_a_description_that_was_changed_is_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "packed"
    source = tiny_llama(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"id2label": {"10": "ü", "9": "b"}, "ε": 1e-7}))
    convert(source, folder)
    capsys.readouterr()
    path = folder / "gossamer.json"
    written = path.read_text("utf-8")
    scale = json.loads(written)["transformer"]["stack"]["kinds"][0]["branches"][0]["mixer"]["scale"]
    digit = "3" if str(scale)[-1] != "3" else "4"
    for changed in (
        written.replace(f'"scale": {scale}', f'"scale": {str(scale)[:-1]}{digit}', 1),
        written.replace('"document_sha256": "', '"document_sha256": "0', 1),
    ):
        assert changed != written
        path.write_text(changed, "utf-8")
        line = f"{path}: was changed since it was written: document_sha256 is not that of its content"
        with pytest.raises(GossamerError) as error:
            read_packed(folder)
        assert str(error.value) == line
        assert main(["inspect", str(folder), "--verify"]) == 1
        told = capsys.readouterr()
        assert "gossamer.json: changed\n" in told.out
        assert "1 of" in told.err
    document = json.loads(written)
    path.write_text(json.dumps(dict(reversed(document.items())), indent=3, ensure_ascii=False), "utf-8")
    read_packed(folder)  # says the same, in other bytes
    del document["document_sha256"]
    path.write_text(json.dumps(document), "utf-8")  # as earlier versions wrote it
    read_packed(folder)
    assert "gossamer.json" not in changed_files(folder)


def test_what_has_no_checksums_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_llama(tmp_path / "source")
    assert main(["inspect", str(source), "--verify"]) == 1
    assert "is not packed" in capsys.readouterr().err
    convert(source, tmp_path / "packed")
    document = read_document(tmp_path / "packed")
    digests = document.pop("sha256")
    write_document(tmp_path / "packed", document)
    with pytest.raises(GossamerError, match="has no checksums"):
        changed_files(tmp_path / "packed")
    elsewhere = {"sha256": {"../source/config.json": digests["weights.safetensors"]}}
    write_document(tmp_path / "packed", document | elsewhere)
    with pytest.raises(GossamerError, match="is no file's name"):
        changed_files(tmp_path / "packed")


@pytest.mark.parametrize("size", [0, 1, 5000, 1 << 20])
def test_samples_tell_sizes_ends_and_other_contents(tmp_path: Path, size: int) -> None:
    path, content = tmp_path / "file", os.urandom(size)

    def told(data: bytes) -> str:
        path.write_bytes(data)
        return sampled_sha256(path)

    own = told(content)
    assert own == told(content)
    assert own != told(content + b"a")
    for other in (os.urandom(size), content[:-1] + bytes([255 - content[-1]]) if size else b"a"):
        assert (told(other) == own) == (other == content)


def test_weights_of_another_folder_are_told(tmp_path: Path) -> None:
    for seed in (1, 2):
        convert(tiny_llama(tmp_path / f"m{seed}", seed=seed), tmp_path / f"p{seed}")
    weights = tmp_path / "p1" / "weights.safetensors"
    weights.write_bytes((tmp_path / "p2" / "weights.safetensors").read_bytes())
    with pytest.raises(GossamerError, match=r"is not the file that gossamer\.json was written with") as error:
        gossamer.load(tmp_path / "p1")
    assert str(error.value).startswith(f"{weights}: ")
    document = read_document(tmp_path / "p1")
    del document["weights_sampled_sha256"]  # as folders packed earlier
    write_document(tmp_path / "p1", document)
    assert read_packed(tmp_path / "p1").weights
