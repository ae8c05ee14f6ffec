from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import gossamer.torch as gt

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope="module")
def minilm() -> Iterator[tuple[nn.Module, dict[str, Tensor], set[str]]]:
    """The real model, half pruned, with inputs and the names of what was pruned."""
    with pytest.MonkeyPatch.context() as patch:
        embeddings = example("embeddings", patch)
        model, read = embeddings.minilm()
        batch = read(embeddings.SENTENCES)
        reached = gt.prune_linears(model, [batch], sparsity=0.5)
        assert len(reached) == 36
        assert set(reached.values()) == {0.5}
        yield model, batch, set(reached)


@pytest.mark.network
@pytest.mark.real_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_embeddings_of_minilm(
    dtype: torch.dtype, minilm: tuple[nn.Module, dict[str, Tensor], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = example("embeddings", monkeypatch).embed
    model, batch, names = minilm
    model = copy.deepcopy(model).to(dtype)
    dense = embed(model, batch)
    report = gt.sparsify(model, format="bitmap", include="encoder.*")
    assert {layer.name for layer in report.packed} == names
    assert float((dense * embed(model, batch)).sum(-1).min()) > 0.9999
    related = (dense @ dense.T).fill_diagonal_(-1).argmax(1)
    assert related.tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]  # sentences are in pairs


@pytest.mark.network
@pytest.mark.real_model
@pytest.mark.slow
def test_whisper_hears_the_same_with_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = example("speech", monkeypatch)
    model, extractor, tokenizer = example("whisper_base", monkeypatch).load()
    paths = speech.recordings(list(speech.SENTENCES))
    said = [speech.transcription(path) for path in paths]
    mel = speech.features(extractor, [speech.read_wav(path) for path in paths])

    def heard() -> list[str]:
        return tokenizer.decode_batch(model.generate(mel, **speech.ENGLISH).tolist(), skip_special_tokens=True)

    dense = speech.word_error_rate(heard(), said)
    assert dense < 0.05
    speech.prune(model, extractor, 0.4)
    pruned = heard()
    assert speech.word_error_rate(pruned, said) < 0.25  # still words
    report = gt.sparsify(model, format="bitmap")
    assert len(report.packed) == 96
    assert heard() == pruned
