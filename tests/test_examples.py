from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gossamer.torch as gt

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("text", "translation", "speech", "vision", "embeddings")


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_runs_and_tells_time_size_and_choices(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example(name, monkeypatch).main(["--tiny", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert any("linear layers packed as bitmap, f32" in line for line in lines)
    (time,) = (line for line in lines if line.startswith("time "))
    (size,) = (line for line in lines if line.startswith("size "))
    assert time.endswith("x")
    assert float(size.rpartition(" ")[2].rstrip("x")) > 1


@pytest.mark.parametrize("name", ["translation", "vision"])
def test_those_without_a_model_of_their_own_ask_for_one(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        example(name, monkeypatch).main([])
    assert stop.value.code == 2
    assert "give --tiny" in capsys.readouterr().err


def test_word_error_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = example("speech", monkeypatch).word_error_rate
    assert rate(["Mr. Dashwood, had then leisure!"], ["mister dashwood had then leisure"]) == 0
    assert rate(["he was"], ["he was not an"]) == 0.5
    assert rate(["a b x d", "e"], ["a b c d", "f"]) == 2 / 5
    assert rate(["a b c"], ["b"]) == 2
    assert rate([""], ["a b"]) == 1


@pytest.mark.network
@pytest.mark.real_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_embeddings_of_minilm(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = example("embeddings", monkeypatch)
    model, read = embeddings.minilm()
    batch = read(embeddings.SENTENCES)
    reached = gt.prune_linears(model, [batch], sparsity=0.5)
    assert len(reached) == 36
    assert set(reached.values()) == {0.5}
    model.to(dtype)
    dense = embeddings.embed(model, batch)
    report = gt.sparsify(model, format="bitmap", include="encoder.*")
    assert {layer.name for layer in report.packed} == set(reached)
    assert float((dense * embeddings.embed(model, batch)).sum(-1).min()) > 0.9999
    related = (dense @ dense.T).fill_diagonal_(-1).argmax(1)
    assert related.tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
