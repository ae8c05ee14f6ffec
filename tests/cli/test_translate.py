"""`gossamer translate`: texts, files and stdin, in order, by models that have an encoder of texts."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="transformers makes the model")
pytest.importorskip("transformers", reason="it makes the model")
from tokenizers import Tokenizer as Backend

import gossamer
from gossamer.cli import main
from gossamer.generation.batch import Answer, Request
from gossamer.generation.completion import Completion
from gossamer.generation.model import Model
from gossamer.generation.stats import Stats
from pair_checks import made_pair
from tiny import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config: dict[str, Any] = {
        "model_type": "t5", "vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    }  # fmt: skip
    return made_pair(tmp_path_factory.mktemp("translate") / "model", config)


def run(*argv: str) -> int:
    return main(["translate", *argv, "--max-new-tokens", "8", "--threads", "1"])


def saying(monkeypatch: pytest.MonkeyPatch, say: Callable[[Model, str], str]) -> None:
    """Has models say this of each text; the tiny one says the same of all."""

    def answers(model: Model, requests: list[Request]) -> list[Answer]:
        texts = [say(model, str(request.prompt)) for request in requests]
        return [Answer(at, Completion(text, (), Stats(1, 0, finish="eos"))) for at, text in enumerate(texts)]

    monkeypatch.setattr("gossamer.cli.translate.answers", answers)


def test_lines_keep_their_order(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["The spider spins a thread of gossamer", "Numbers", "", "the net is thin"]
    saying(monkeypatch, lambda _, text: text[::-1])
    expected = [line[::-1] for line in lines]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # as some editors do
    assert run("-m", str(folder), "--file", str(tmp_path / "lines.txt")) == 0
    assert capsys.readouterr().out.splitlines() == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff" + "\n".join(lines)))
    assert run("-m", str(folder)) == 0
    assert capsys.readouterr().out.splitlines() == expected
    assert run("-m", str(folder), "--json", lines[0], lines[3]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["translation"] for one in document["translations"]] == [expected[0], expected[3]]


def test_a_language_is_the_first_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gossamer.load(folder)
    text = "The spider spins"
    assert run("-m", str(folder), text, "--to", "<|im_start|>") == 0
    model.tokenizer.generation["forced_bos_token_id"] = 1
    assert capsys.readouterr().out.strip() == " ".join(model.generate(text, max_new_tokens=8).split())


def test_a_language_is_told_to_the_encoder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = shutil.copytree(folder, tmp_path / "told")
    settings = json.loads((told / "tokenizer_config.json").read_text())
    settings["additional_special_tokens"] = ["eng_Latn", "fra_Latn"]
    backend = Backend.from_file(str(told / "tokenizer.json"))
    backend.add_special_tokens(settings["additional_special_tokens"])
    settings |= {"tokenizer_class": "NllbTokenizerFast", "src_lang": "eng_Latn", "eos_token": "<|im_end|>"}
    backend.save(str(told / "tokenizer.json"))
    (told / "tokenizer_config.json").write_text(json.dumps(settings))
    text, read = "The spider spins", list[list[int]]()

    def answer(model: Model, prompt: str) -> str:
        read.append(model.tokenizer.encode(prompt))
        return prompt

    saying(monkeypatch, answer)
    assert run("-m", str(told), text) == run("-m", str(told), text, "--from", "fra_Latn") == 0
    untold = f"{told}: writes 2 languages, and nothing says which one: give --to"
    assert capsys.readouterr().err.count(untold) == 2
    assert run("-m", str(told), text, "--to", "fra_Latn") == 0
    assert untold not in capsys.readouterr().err
    english, french, _ = read
    assert [english[0], french[0]] == [backend.token_to_id(name) for name in ("eng_Latn", "fra_Latn")]
    assert english[1:] == french[1:]
    capsys.readouterr()
    assert run("-m", str(told), text, "--from", "fra") == 1
    assert "--from: the model has no token of the language 'fra'; did you mean fra_Latn?" in capsys.readouterr().err


def test_beams_are_those_of_the_model_and_of_the_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = gossamer.load(folder, threads=1), "The spider spins"
    found = {}
    for options in ({}, {"beams": 4, "length_penalty": -2.0}):
        argv = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        assert run("-m", str(folder), text, *argv) == 0
        found[len(options)] = capsys.readouterr().out.strip()
        expected = model.generate(text, **{"max_new_tokens": 8, **options})
        assert found[len(options)] == " ".join(expected.split())
    assert found[0] != found[2]


def test_translations_that_are_cut_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["The spider", "", "the net is thin"]
    assert run("-m", str(folder), *texts, "--json") == 0
    found = capsys.readouterr()
    assert [one["finish"] for one in json.loads(found.out)["translations"]] == ["length", "", "length"]
    assert "2 of the translations did not come to their end at 8 tokens or the context's end; -n allows" in found.err
    assert run("-m", str(folder), *texts, "--logit-bias", "2=1000") == 0
    assert "did not come to their end" not in capsys.readouterr().err


def test_what_a_text_reads_is_not_dropped(folder: Path) -> None:
    with pytest.raises(gossamer.GossamerError, match=r"^context_shift is for models without an encoder"):
        gossamer.load(folder, threads=1).generate("a", context_shift=1)


def test_what_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = tiny_llama(tmp_path / "llama")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    for argv, words in (
        (["-m", str(llama), "a"], "has no encoder of texts"),
        (["-m", str(folder), "a", "--to", "klingon"], "--to: the model has no token of the language 'klingon'"),
        (["-m", str(folder), "a", "--to", "re"], "--to: the model has no token of the language 're'"),  # part of words
        (["-m", str(folder), "a", "--from", "en"], "--from: the model is not told which language a text is in"),
        (["-m", str(folder), "a", "--logit-bias", "999=1"], "'a': logit_bias: token 999 is outside"),
        (["-m", str(folder), "--file", str(tmp_path / "bytes")], "is not UTF-8 text"),
        (["-m", str(folder), "--file", str(tmp_path / "none")], "No such file"),
    ):
        assert run(*argv) == 1
        found = capsys.readouterr()
        assert words in found.err.splitlines()[-1]
        assert not found.out


def test_files_of_prompts_are_answered_too(folder: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "a thread"}, {"prompt": "the net", "beams": 2}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    files = [str(tmp_path / name) for name in ("in.jsonl", "out.jsonl")]
    assert main(["batch", *files, "-m", str(folder), "-n", "3", "--threads", "1"]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["line"], "error" in line, line["new_tokens"] > 0) for line in found] == [
        (1, False, True),
        (2, False, True),
    ]
