"""Answers to a task, by a model whose every answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gossamer
from commands import usage_error
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.generation import tasks
from gossamer.generation.model import Model
from gossamer.generation.tasks import evaluate_task
from gossamer.text.tasks import TaskSample
from tiny import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("task") / "model", seed=3)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return gossamer.load(folder, threads=1)


PROMPTS: list[Any] = ["the net", "a thread of", [{"role": "user", "content": "who spins?"}]]


def samples(model: Model, wrong: int) -> list[TaskSample]:
    """The model's own answers as the right ones, but for one."""
    found = []
    for number, prompt in enumerate(PROMPTS):
        text = model.generate(prompt, chat=not isinstance(prompt, str), temperature=0, max_new_tokens=5)
        found.append(TaskSample(f"t.jsonl:{number + 1}", prompt, "no such" if number == wrong else text))
    return found


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_answers_are_what_the_model_writes(model: Model, batch: int) -> None:
    asked = samples(model, 1)
    result = evaluate_task(model, asked, max_new_tokens=5, batch=batch)
    assert [answer.exact.points for answer in result.answers] == [1, 0, 1]
    assert (result.value, result.exact) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert result.answers[0].text == asked[0].completion


def test_what_a_model_says_may_never_be_written_holds(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", seed=3)
    asked = [TaskSample("t.jsonl:1", "the net", "x")]
    free = gossamer.load(folder, threads=1)
    first = int(free.logits(free.tokenizer.encode("the net"))[-1].argmax())
    said = {"bad_words_ids": [[first]], "do_sample": True, "temperature": 9.0}
    (folder / "generation_config.json").write_text(json.dumps(said), encoding="utf-8")
    model = gossamer.load(folder, threads=1)
    written, found = (evaluate_task(one, asked, max_new_tokens=5).answers[0].text for one in (free, model))
    assert found == free.generate("the net", chat=False, temperature=0, max_new_tokens=5, bad_words=[[first]])
    assert found != written


def test_what_the_template_opens_an_answer_with_is_no_part_of_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = "<think>\n\n</think>\n\n"
    chat, plain = [{"role": "user", "content": "who spins?"}], "who spins?"
    asked = [TaskSample(f"t.jsonl:{n}", prompt, "quick") for n, prompt in enumerate((chat, chat, chat, plain), 1)]
    written = [f"{opening}quick", "quick", f"{opening}slow", f"{opening}quick"]
    monkeypatch.setattr(tasks, "opening", lambda sample, _: "" if sample.prompt == plain else opening.strip())
    monkeypatch.setattr(tasks, "_answers", lambda *_: written)
    found = evaluate_task(model, asked).answers
    assert [(answer.text, answer.exact.points) for answer in found] == [
        ("quick", 1), ("quick", 1), ("slow", 0), (written[3], 0),
    ]  # fmt: skip


def test_limits_of_the_context(model: Model) -> None:
    long = TaskSample("t.jsonl:4", "the " * 200, "net")
    with pytest.raises(GossamerError, match=r"t\.jsonl:4: the prompt has 202 tokens, .* context holds 128"):
        evaluate_task(model, [*samples(model, 1), long])
    with pytest.raises(GossamerError, match="no samples"):
        evaluate_task(model, [])


def test_the_command(model: Model, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = tmp_path / "t.jsonl", tmp_path / "out" / "results.jsonl"
    lines = []
    for number, sample in enumerate(samples(model, 1)):
        fields = {"prompt": sample.prompt, "completion": sample.completion}
        if sample.chats:
            fields = {"messages": [*sample.prompt, {"role": "assistant", "content": sample.completion}]}
        lines.append(json.dumps({**fields, "id": number}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    line = ["eval", str(folder), "--task", str(path), "--threads", "1", "--max-new-tokens", "5"]
    assert main([*line, "--metric", "words", "--results", str(results), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["metric"], document["samples"], document["exact"]) == ("words", 3, pytest.approx(2 / 3))
    written = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()]
    assert [(one["id"], one["exact"]) for one in written] == [(0, True), (1, False), (2, True)]
    assert document["value"] == sum(one["points"] for one in written) / sum(one["units"] for one in written)
    assert main([*line, "--limit", "1", "--results", str(results)]) == 1
    assert f"{results}: exists already; --force replaces it" in capsys.readouterr().err
    assert len(results.read_text(encoding="utf-8").splitlines()) == 3
    assert main([*line, "--limit", "1", "--results", str(results), "--force"]) == 0
    assert len(results.read_text(encoding="utf-8").splitlines()) == 1
    capsys.readouterr()
    assert main([*line, "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("exact 50.0% ± 50.0%, 2 answers")
    assert main([*line, "--metric", "json"]) == 1
    assert "t.jsonl:1: the metric json needs a JSON object" in capsys.readouterr().err


def test_options_of_the_other_kind_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--metric: goes with --task" in usage_error(capsys, "eval", "m", "--text", "t", "--metric", "words")
    assert "--windows: goes with --text" in usage_error(capsys, "eval", "m", "--task", "t", "--windows", "2")
    assert "--force: needs --results" in usage_error(capsys, "eval", "m", "--task", "t", "--force")
    assert "--text" in usage_error(capsys, "eval", "m")
