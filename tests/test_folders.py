"""Destinations: what is refused, what `--force` replaces, and what stays whatever is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gossamer.errors import GossamerError
from gossamer.folders import check_destination, holds_model, new_folder, remove_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "low_rank").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    (folder / "low_rank" / "adapter_config.json").write_text("{}")
    return folder


def test_a_model_is_replaced_by_force_alone(model: Path) -> None:
    with pytest.raises(GossamerError, match=r"model: exists already; --force replaces it$"):
        check_destination(model)
    with new_folder(model, force=True) as part:
        (part / "new").write_text("x")
        assert (model / "config.json").is_file(), "until the new one is whole the old one stays"
    assert [path.name for path in model.iterdir()] == ["new"]
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_what_fails_leaves_the_old_model(model: Path) -> None:
    def stopped() -> None:
        with new_folder(model, force=True) as part:
            (part / "new").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert holds_model(model)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("sign", "weights"),
    [
        ("gossamer.json", "weights.safetensors"),
        ("config.json", "model-00001-of-00002.safetensors"),
        ("config.json", "pytorch_model.bin"),
    ],
)
def test_folders_of_models_have_a_sign_and_weights_and_no_other_folders(
    tmp_path: Path, sign: str, weights: str
) -> None:
    (tmp_path / weights).write_text("")
    assert not holds_model(tmp_path)
    (tmp_path / sign).write_text("{}")
    assert holds_model(tmp_path)
    (tmp_path / ".git").mkdir()
    assert not holds_model(tmp_path)
    with pytest.raises(GossamerError, match=r"holds more than a model or samples \(\.git\); it is left as it is"):
        check_destination(tmp_path, force=True)


def test_files_that_are_called_as_a_models_are_no_model(tmp_path: Path) -> None:
    for name in ("config.json", "README.md", "LICENSE", "samples.json", ".gitattributes"):
        (tmp_path / name).write_text("[1]")
        with pytest.raises(GossamerError, match=r"exists already and holds no model and no samples; it is left as it"):
            check_destination(tmp_path, force=True)
    (tmp_path / "samples.json").write_text('{"tokenizer": "x"}')
    check_destination(tmp_path, force=True)


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "train.py", "paper.pdf", "tokenizer.json~", "data"),
        *("results.json", "embeddings.bin", "steering.safetensors", "my.model", "prompt.jinja", "2024_results"),
    ],
)
def test_what_is_of_no_model_is_not_replaced(model: Path, name: str) -> None:
    (model / name).mkdir() if name in ("data", "2024_results") else (model / name).write_text("precious")
    with pytest.raises(GossamerError, match=re.escape(f"holds more than a model or samples ({name})")):
        check_destination(model, force=True)
    with pytest.raises(GossamerError, match=re.escape(name)), new_folder(model, force=True):
        pass
    assert (model / name).exists()


@pytest.mark.parametrize("name", ["low_rank/ranks.json", "1_Pooling/config", "additional_chat_templates/notes.txt"])
def test_what_is_of_no_model_may_lie_deeper(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("precious")
    with pytest.raises(GossamerError, match=re.escape(f"({name})")):
        check_destination(model, force=True)


def test_what_hubs_lay_beside_a_model_is_of_it(model: Path) -> None:
    for name in ("README.md", "merges.txt", "tokenizer.model", "chat_template.jinja", "pytorch_model.bin", "LICENSE"):
        (model / name).write_text("x")
    for name in ("low_rank", "1_Pooling", "additional_chat_templates"):
        (model / name).mkdir(exist_ok=True)
    check_destination(model, force=True)


def test_what_is_read_is_not_replaced(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(model)
    for read in (model, model / "config.json", link):
        for place in (model, link):
            with pytest.raises(GossamerError, match=r"cannot be replaced, since .* is read"):
                check_destination(place, force=True, reads=[read])
    check_destination(model, force=True, reads=[tmp_path / "another", tmp_path])


def test_a_way_through_a_folder_that_is_not_there_ends_at_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "m" / name).write_text("{}")
    place = tmp_path / "nowhere" / ".." / "m"
    with pytest.raises(GossamerError, match="exists already; --force replaces it"):
        check_destination(place)
    with pytest.raises(GossamerError, match=r"cannot be replaced, since .* is read"):
        check_destination(place, force=True, reads=[tmp_path / "m"])


def test_a_removed_folder_is_gone(model: Path) -> None:
    remove_folder(model)
    assert list(model.parent.iterdir()) == []
    with pytest.raises(GossamerError, match="model: cannot be removed: No such file"):
        remove_folder(model)
