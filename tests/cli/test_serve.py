"""`gossamer serve`: what its options make of models, adapters and limits, before anybody listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gossamer
from adapter_files import factors, write_lora
from gossamer.cli import main
from tiny import tiny_llama


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What would be served: models by name, and settings."""
    found: list[tuple[Any, Any]] = []
    monkeypatch.setattr("gossamer.serving.logs.set_up", lambda: None)
    monkeypatch.setattr(
        "gossamer.serving.server.serve", lambda registry, limits, _tell: found.append((registry, limits))
    )
    return found


def test_an_adapter_is_a_name_of_its_own_and_changes_no_other_text(served: list[Any], tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny")
    lora = write_lora(tmp_path / "lora", factors({"model.layers.0.mlp.down_proj": (96, 160)}, 4))
    models = ["-m", f"a={folder}", "-m", f"b={folder}", "--draft", "off", "--threads", "1"]
    assert main(["serve", *models, "--adapter", f"formal={lora}", "--adapter", f"b:other={lora}", "--batch", "3"]) == 0
    ((registry, limits),) = served
    assert limits.most == 3
    assert registry.names() == ["a", "b", "formal", "other"]
    found = {name: (registry.find(name)[0].name, registry.find(name)[1]) for name in registry.names()}
    assert found == {"a": ("a", ()), "b": ("b", ()), "formal": ("a", ("formal",)), "other": ("b", ("other",))}
    model = registry.find("formal")[0].model
    plain = gossamer.load(folder, threads=1).generate("The spider", max_new_tokens=16)
    assert model.generate("The spider", max_new_tokens=16) == plain
    assert model.generate("The spider", max_new_tokens=16, adapters="formal") != plain


def test_an_adapter_of_no_model_is_refused(
    served: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_llama(tmp_path / "tiny")
    for adapter, words in (("nobody:x=lora", "no model 'nobody'"), (str(tmp_path), "needs a name")):
        assert main(["serve", "-m", str(folder), "--draft", "off", "--adapter", adapter]) == 1
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert served == []
