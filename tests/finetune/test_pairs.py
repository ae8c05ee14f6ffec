"""Decoders that read an encoder: finetuned on pairs with the states of both sides, zeros held."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the [torch] extra is not installed")
pytest.importorskip("transformers", reason="its models are what is trained")
import torch

import gossamer
from commands import usage_error
from gossamer.arch import family
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.finetune.losses import squarehead
from gossamer.finetune.options import LENGTH, Options, Parts
from gossamer.finetune.pair_data import PairData, prepare_pairs
from gossamer.finetune.pipeline import finetune
from gossamer.finetune.task import finetune_task
from gossamer.finetune.task_data import TaskFiles
from gossamer.generation.tasks import evaluate_task
from gossamer.nn.decoder import load
from gossamer.pruning import prune
from gossamer.text.tasks import read_task
from pair_checks import made_pair, made_whisper
from tiny import tiny_llama

WORDS = ("net", "web", "spider", "thread", "weaver")
QUICK: dict[str, Any] = {
    "batch": 1, "length": 64, "tokens": 3000, "lr": 3e-3, "precision": "f32", "validations": 1, "threads": 1,
}  # fmt: skip
T5 = {"model_type": "t5", "vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, one with zeros, and a task of saying a word again."""
    folder = tmp_path_factory.mktemp("pairs")
    made_pair(folder / "dense", T5)
    lines = [{"source": f"{a} {b}", "target": b} for a in WORDS for b in WORDS]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    prune(folder / "dense", folder / "pruned", method="magnitude", sparsity=0.5)
    return folder


def task(files: Path) -> TaskFiles:
    return TaskFiles(files / "pairs.jsonl", 0.2)


def tensors(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def data_of(files: Path, length: int = 0) -> PairData:
    checkpoint = open_checkpoint(files / "dense")
    model = family(checkpoint.config).describe(checkpoint.config)
    options = {"length": length, "default": LENGTH, "seed": 3}
    return prepare_pairs(task(files), checkpoint.tokenizer(), model, **options, progress=lambda *_: None)


@pytest.mark.parametrize("rounded", ["stored", "int8"])
def test_zeros_are_held_states_come_nearer_and_the_result_runs(files: Path, tmp_path: Path, rounded: str) -> None:
    options = Options(**QUICK, loss=Parts(0, 1, 0), weights=rounded)
    report = finetune(files / "pruned", tmp_path / "tuned", teacher=files / "dense", data=task(files), options=options)
    assert report.curve[-1]["squarehead"] < 0.8 * report.curve[0]["squarehead"]
    before, after = tensors(files / "pruned"), tensors(tmp_path / "tuned")
    moved = 0
    for name, values in before.items():
        if ("Attention" in name or "Dense" in name) and values.ndim == 2 and "relative" not in name:
            assert not after[name][values == 0].any()
            moved += not np.array_equal(values, after[name])
    assert moved == 32, "matrices of both sides"
    gossamer.convert(tmp_path / "tuned", tmp_path / "packed", weights="int8")
    model = gossamer.load(tmp_path / "packed")
    assert isinstance(model.generate("net web", max_new_tokens=5), str)


def test_a_task_is_learned_packed_and_measured(files: Path, tmp_path: Path) -> None:
    options = {**QUICK, "tokens": 8000, "lr": 1e-2}
    run = finetune_task(
        files / "pruned",
        tmp_path / "run",
        task(files),
        teacher=files / "dense",
        options=Options(**options, loss=Parts(1, 0, 0)),
    )
    samples = read_task(files / "pairs.jsonl")
    before, after = (
        evaluate_task(gossamer.load(folder), samples, metric="words").value for folder in (files / "pruned", run.packed)
    )
    assert after < 0.5 < before, "words that are wrong"


def test_the_command_trains_packs_and_measures(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "finetune",
        files / "pruned",
        tmp_path / "run",
        "--teacher",
        files / "dense",
        "--task",
        files / "pairs.jsonl",
    ]
    argv += ["--tokens", "300", "--length", "64", "--batch", "1", "--precision", "f32", "--squarehead", "1"]
    assert main([*map(str, argv), "--threads", "1", "--max-new-tokens", "6", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["row"] for row in rows] == ["dense int8:64", "dense int4:32", "sparse"]
    assert rows[2]["zeros"] == pytest.approx(0.5, abs=0.02), "of both sides"
    assert all(row["tokens_per_second"] > 0 for row in rows)


@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_zeros_are_raised_on_both_sides(files: Path, tmp_path: Path, scores: str) -> None:
    options = Options(**QUICK, schedule="cubic", sparsity=0.6, scores=scores)
    finetune(files / "dense", tmp_path / "t", teacher=files / "dense", data=task(files), options=options)
    checkpoint = open_checkpoint(tmp_path / "t")
    sources = checkpoint.sources()
    for name in family(checkpoint.config).describe(checkpoint.config).linears:
        assert (checkpoint.read(sources[name]) == 0).mean() == pytest.approx(0.6, abs=0.01), name


def test_what_needs_no_text_of_its_own_is_timed_and_what_does_is_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(files / "dense"), "-p", "8", "-n", "4", "-r", "1", "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["test"] for row in document["rows"]] == ["pp8", "tg4"]
    assert main(["sample", str(files / "dense"), str(tmp_path / "s"), "--tokens", "600"]) == 1
    assert "has an encoder: it writes about what is given" in capsys.readouterr().err


def test_a_stopped_run_goes_on_to_the_same_end(files: Path, tmp_path: Path) -> None:
    options = Options(**{**QUICK, "tokens": 900}, loss=Parts(0.5, 1, 0.5), top=4, save_steps=1)
    common: dict[str, Any] = {"teacher": files / "dense", "data": task(files), "options": options}
    finetune(files / "pruned", tmp_path / "whole", **common)

    def stopped(_done: int, _total: int, what: str) -> None:
        if what.startswith("step 5:"):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        finetune(files / "pruned", tmp_path / "again", **common, progress=stopped)
    finetune(files / "pruned", tmp_path / "again", **common)
    whole, again = tensors(tmp_path / "whole"), tensors(tmp_path / "again")
    for name, values in whole.items():
        np.testing.assert_array_equal(values, again[name])


def test_batches_have_what_is_read_and_what_is_to_be_written(files: Path) -> None:
    data = data_of(files, 24)
    batch = data.batch(0, 4)
    assert batch.windows is not None
    assert batch.reads is not None
    assert batch.heard is not None
    assert batch.windows.tolist() == sorted(batch.windows.tolist())
    assert int(batch.windows[-1]) == 3
    parts = list(batch.split(3))
    assert [len(torch.unique(part.windows)) for part in parts] == [3, 1]
    for row in range(len(batch.tokens)):
        places = batch.places[row][batch.real[row]]
        np.testing.assert_array_equal(data.train[places], batch.tokens[row][batch.real[row]])
        pair = next(one for one in data.samples if np.array_equal(one.read(), batch.reads[row][batch.heard[row]]))
        asked = batch.asked[row]
        assert tuple(batch.targets[row][asked].tolist()) == pair.target
        assert tuple(batch.tokens[row][asked].tolist()) == (pair.begins[-1], *pair.target[:-1])
    seen = [number for inside in data._passes.plan(0) for number in inside]
    assert sorted(seen) == list(range(len(data.samples)))


def test_the_loss_counts_both_sides_and_no_padding(files: Path) -> None:
    batch = data_of(files).batch(0, 1)
    student, teacher = load(files / "pruned"), load(files / "dense")
    given = {"reads": batch.reads, "heard": batch.heard}
    with torch.no_grad():
        ours, theirs = student(batch.tokens, **given), teacher(batch.tokens, **given)
        whole = float(squarehead(ours.encoded, theirs.encoded, batch.heard))
        for states in (*ours.encoded, *theirs.encoded):
            states[~batch.heard] = 1e6
    assert float(squarehead(ours.encoded, theirs.encoded, batch.heard)) == whole > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cubic", "sparsity": 0.6, "scores": "sparsegpt"}, "scores sparsegpt are for models without"),
        ({"length": 3}, r"pairs\.jsonl:\d+: the pair has \d+ tokens, and a window holds 3"),
    ],
)
def test_what_is_refused(files: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    options = Options(**{**QUICK, **change})
    with pytest.raises(GossamerError, match=message):
        finetune(files / "pruned", tmp_path / "t", teacher=files / "dense", data=task(files), options=options)
    assert not (tmp_path / "t").exists()


def test_texts_and_other_teachers_are_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("net " * 2000, encoding="utf-8")
    common: dict[str, Any] = {"options": Options(**QUICK)}
    with pytest.raises(GossamerError, match="learns from a task of pairs, not from texts"):
        finetune(files / "pruned", tmp_path / "t", teacher=files / "dense", data=[tmp_path / "text.txt"], **common)
    other = made_pair(tmp_path / "other", {**T5, "num_layers": 3, "num_decoder_layers": 2})
    with pytest.raises(GossamerError, match="layers of the encoder are 2 in the student and 3 in the teacher"):
        finetune(files / "pruned", tmp_path / "t", teacher=other, data=task(files), **common)


def test_speech_learns_from_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile = pytest.importorskip("soundfile", reason="reads sound")
    pytest.importorskip("soxr", reason="resamples")
    made_whisper(tmp_path / "dense")
    random = np.random.default_rng(0)
    lines = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", random.standard_normal(4000 + 4000 * number) * 0.1, 16000)
        lines.append({"audio": f"{number}.wav", "transcript": f"clip {number}"})
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    prune(tmp_path / "dense", tmp_path / "pruned", method="magnitude", sparsity=0.5)
    options = Options(**{**QUICK, "length": 0, "batch": 2, "tokens": 256 * 2 * 6})
    clips = TaskFiles(tmp_path / "clips.jsonl", 0.3)
    report = finetune(tmp_path / "pruned", tmp_path / "tuned", teacher=tmp_path / "dense", data=clips, options=options)
    assert report.steps == 6
    assert report.log[-1]["ce"] < report.log[0]["ce"]
    before, after = tensors(tmp_path / "pruned"), tensors(tmp_path / "tuned")
    for name in ("encoder.layers.0.fc1", "decoder.layers.0.encoder_attn.k_proj"):
        values = before[f"model.{name}.weight"]
        assert not after[f"model.{name}.weight"][values == 0].any()
        assert not np.array_equal(after[f"model.{name}.weight"], values)
    gossamer.convert(tmp_path / "tuned", tmp_path / "packed", weights="int8")
    argv = [
        "finetune",
        tmp_path / "pruned",
        tmp_path / "run",
        "--task",
        clips.path,
        "--held-out",
        "0.3",
        "--max-new-tokens",
        "3",
    ]
    capsys.readouterr()
    assert "argument --max-new-tokens: is not for sound" in usage_error(capsys, *map(str, argv))
    answers = evaluate_task(gossamer.load(tmp_path / "packed"), read_task(clips.path)[:1], metric="words").answers
    assert isinstance(answers[0].text, str)
    with pytest.raises(GossamerError, match=r"clips\.jsonl:1: is sound, which max_new_tokens is not for"):
        evaluate_task(gossamer.load(tmp_path / "packed"), read_task(clips.path), max_new_tokens=3)


@pytest.mark.parametrize(
    ("model", "line", "scores"),
    [
        ("dense", ["--schedule", "cubic", "--sparsity", "0.6"], "magnitude"),
        ("alone", ["--schedule", "cubic", "--sparsity", "0.6"], "sparsegpt"),
        ("alone", ["--schedule", "cubic", "--sparsity", "0.6", "--scores", "movement"], "movement"),
        ("alone", ["--schedule", "fixed"], "magnitude"),
    ],
    ids=["an encoder", "none", "asked for", "no zeros raised"],
)
def test_what_the_command_drops_by(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, line: list[str], scores: str
) -> None:
    """Solving is what takes few steps, and there it cannot be done only where a model has an encoder."""
    asked: list[Options] = []

    def stop(*_: object, options: Options, **__: object) -> None:
        asked.append(options)
        raise GossamerError("enough")

    monkeypatch.setattr(sys.modules[finetune_task.__module__], "finetune_task", stop)
    tiny_llama(tmp_path / "alone")
    source = files / "dense" if model == "dense" else tmp_path / "alone"
    assert main(["finetune", str(source), str(tmp_path / "out"), "--task", str(files / "pairs.jsonl"), *line]) == 1
    assert [options.scores for options in asked] == [scores]
