"""Vectors of texts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gossamer
from gossamer import GossamerError
from gossamer.cli import main
from gossamer.pruning import prune
from tiny import save_tokenizer, tiny_llama

TEXTS = ["The spider spins.", "A thread", "The net of the weaver is thin, and the thread holds the spider."]


def folder(path: Path, pooling: dict[str, bool] | None = None, modules: tuple[str, ...] = ()) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=320,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(path)
    save_tokenizer(path)
    if pooling is not None:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        names = ("Transformer", "Pooling", *modules)
        kinds = [f"sentence_transformers.models.{name}" for name in names]
        listed = [
            {"idx": number, "path": "1_Pooling" if "Pooling" in kind else "", "type": kind}
            for number, kind in enumerate(kinds)
        ]
        (path / "modules.json").write_text(json.dumps(listed))
    return path


def states(path: Path, model: Any, text: str) -> Any:
    theirs = transformers.BertModel.from_pretrained(path).double().eval()
    with torch.no_grad():
        return theirs(torch.tensor([model.tokenizer.encode(text)])).last_hidden_state[0].numpy()


def test_vectors_are_means_of_length_one(tmp_path: Path) -> None:
    model = gossamer.load(folder(tmp_path / "model"), activations="f32")
    found = model.embed(TEXTS)
    assert found.shape == (3, 48)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        mean = states(tmp_path / "model", model, text).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5, rtol=0)
        np.testing.assert_array_equal(model.embed([text])[0], vector)
    assert model.embed([]).shape == (0, 48)


def test_the_first_token_and_no_length(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    model = gossamer.load(path, activations="f32")
    first = states(path, model, TEXTS[0])[0]
    np.testing.assert_allclose(model.embed(TEXTS[:1])[0], first, atol=1e-5, rtol=0)
    mean = states(path, model, TEXTS[0]).mean(0)
    np.testing.assert_allclose(model.embed(TEXTS[:1], pool="mean")[0], mean, atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(model.embed(TEXTS, normalize=True), axis=1), 1, atol=1e-6)


def test_packed_and_pruned_folders_keep_how_vectors_are_made(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_cls_token": True})
    prune(path, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    gossamer.convert(tmp_path / "pruned", tmp_path / "packed", weights="f32")
    model = gossamer.load(tmp_path / "packed", activations="f32")
    first = states(tmp_path / "pruned", model, TEXTS[2])[0]
    np.testing.assert_allclose(model.embed(TEXTS[2:])[0], first, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("pooling", "modules", "what"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling_mode_max_tokens is not supported"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "pooling_mode_mean_tokens with"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "models.Dense' is not supported"),
    ],
)
def test_other_ways_are_refused(pooling: dict[str, bool], modules: tuple[str, ...], what: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", pooling, modules)
    with pytest.raises(GossamerError, match=what):
        gossamer.load(path)


def test_long_texts(tmp_path: Path) -> None:
    model = gossamer.load(folder(tmp_path / "model"), activations="f32")
    long = "The spider spins a thread of gossamer. " * 20
    with pytest.raises(GossamerError, match=r"text 2 has \d+ tokens, and the model's context holds 40"):
        model.embed([TEXTS[0], long])
    cut = model.decoder.encode([np.array(model.tokenizer.encode(long)[:40], np.int32)]).mean(0)
    np.testing.assert_allclose(model.embed([long], truncate=True)[0], cut / np.linalg.norm(cut), atol=1e-5, rtol=0)


def test_what_the_files_beside_say_of_texts_holds_packed_too(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    gossamer.convert(path, tmp_path / "packed", weights="f32")
    for place in (path, tmp_path / "packed"):
        model = gossamer.load(place, activations="f32")
        expected = states(path, model, "the spider").mean(0)
        np.testing.assert_allclose(model.embed(["The SPIDER"])[0], expected, atol=1e-5, rtol=0)
        long = "the spider spins a thread of gossamer"
        with pytest.raises(GossamerError, match=r"text 1 has \d+ tokens, and the files beside the model allow 12"):
            model.embed([long])
        ids = model.tokenizer.encode(long)[:12]
        expected = states(path, model, model.tokenizer.decode(ids)).mean(0)
        np.testing.assert_allclose(model.embed([long], truncate=True)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        ({"max_seq_length": "128"}, "sentence_bert_config.json: max_seq_length must be a whole number"),
        ({"do_lower_case": 1}, "sentence_bert_config.json: do_lower_case must be true or false"),
    ],
)
def test_nonsense_beside_is_refused(texts: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (path / "sentence_bert_config.json").write_text(json.dumps(texts))
    with pytest.raises(GossamerError, match=what):
        gossamer.load(path)


def test_bad_calls(tmp_path: Path) -> None:
    model = gossamer.load(folder(tmp_path / "model"))
    for texts, options, what in (
        ("one text", {}, "a list"),
        (["a", None], {}, "text 2 must be a text, got None"),
        ([""], {}, "text 1 has no tokens"),
        (["a"], {"pool": "max"}, "pool must be one of mean, cls"),
    ):
        with pytest.raises(GossamerError, match=what):
            model.embed(texts, **options)
    with pytest.raises(GossamerError, match="no encoder"):
        gossamer.load(tiny_llama(tmp_path / "llama")).embed(["a"])
    with pytest.raises(GossamerError, match="writes no text"):
        model.generate("hello")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(folder(tmp_path / "model"))
    assert main(["embed", "-m", path, *TEXTS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    expected = gossamer.load(path).embed(TEXTS)
    np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), expected)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n"))
    assert main(["embed", "-m", path, "-o", str(tmp_path / "vectors.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), expected)
    assert main(["embed", "-m", path, TEXTS[0], "-o", str(tmp_path / "vectors.npy")]) == 1
    assert "vectors.npy: exists already; --force replaces it" in capsys.readouterr().err
    assert main(["embed", "-m", path, TEXTS[0], "-o", str(tmp_path / "vectors.npy"), "--force"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), expected[:1])
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["embed", "-m", path]) == 1
    assert "there is no text" in capsys.readouterr().err
