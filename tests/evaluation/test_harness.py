"""The harness's model beside that of transformers, on tasks from files of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import GossamerError
from tiny import tiny_llama

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it stands on

WORDS = [
    "the",
    "spider",
    "spins",
    "a",
    "thread",
    "of",
    "gossamer",
    "and",
    "the",
    "net",
    "holds",
    "numbers",
    "of",
    "thin",
    "weights",
]

CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXT = """\
task: local_text
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/text.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
WRITE = """\
task: local_write
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/text.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "a"
generation_kwargs: {{until: ["t"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number in range(24):
        question = " ".join(WORDS[number % 5 : number % 5 + 4])
        choices = [f" {WORDS[(number + k) % len(WORDS)]} {WORDS[(3 * number + k) % len(WORDS)]}" for k in range(4)]
        rows.append({"question": question, "choices": choices, "answer": number % 4})
    (folder / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [" ".join(WORDS[n:] + WORDS[: 2 * n]) * (1 + 4 * (n == 3)) for n in range(6)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, text in (("choice", CHOICE), ("text", TEXT), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("harness") / "tiny")


def results(model: str, checkpoint: Path, tasks: Path, **more: Any) -> Any:
    import lm_eval
    from lm_eval.tasks import TaskManager

    import gossamer.evaluation.harness  # noqa: F401 - which registers the model

    return lm_eval.simple_evaluate(
        model=model,
        model_args={"pretrained": str(checkpoint), **more},
        tasks=["local_choice", "local_text", "local_write"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        verbosity="ERROR",
    )


def test_results_are_those_of_transformers(checkpoint: Path, tasks: Path) -> None:
    ours = results("gossamer", checkpoint, tasks, activations="f32", threads=1)
    theirs = results("hf", checkpoint, tasks, device="cpu", dtype="float32")
    for task in ("local_choice", "local_text", "local_write"):
        for metric, value in theirs["results"][task].items():
            if isinstance(value, float):
                assert ours["results"][task][metric] == pytest.approx(value, rel=1e-4), metric
    for mine, other in zip(ours["samples"]["local_choice"], theirs["samples"]["local_choice"], strict=True):
        for (likelihood, greedy), (expected, likeliest) in zip(
            mine["filtered_resps"], other["filtered_resps"], strict=True
        ):
            assert likelihood == pytest.approx(expected, abs=1e-2)
            assert greedy == likeliest
    written = [[sample["resps"] for sample in each["samples"]["local_write"]] for each in (ours, theirs)]
    assert written[0] == written[1]
    assert any(text for ((text,),) in written[0])


def test_the_command_line_runs_where_there_is_no_gpu(
    checkpoint: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gossamer.evaluation import harness
    from gossamer.evaluation.__main__ import main

    monkeypatch.setattr(harness, "why_unavailable", lambda: "there is none")
    line = ["run", "--model", "gossamer", "--model_args", f"pretrained={checkpoint},threads=1"]
    line += ["--tasks", "local_choice", "--include_path", str(tasks)]
    monkeypatch.setattr("sys.argv", ["lm-eval", *line])
    assert main() == 0
    assert "local_choice" in capsys.readouterr().out


def test_options_are_refused_by_name(checkpoint: Path) -> None:
    from gossamer.evaluation.harness import Gossamer

    with pytest.raises(GossamerError, match="max_length must be from 2 to 128"):
        Gossamer(str(checkpoint), max_length=1000)
    with pytest.raises(GossamerError, match="colour"):
        Gossamer(str(checkpoint), colour="red")
    model = Gossamer(str(checkpoint), threads=1)
    with pytest.raises(GossamerError, match="num_beams is not supported"):
        model._text("x", {"until": [], "num_beams": 2})
    with pytest.raises(GossamerError, match="asks for 128 tokens"):
        model._text("x", {"until": [], "max_gen_toks": 128})


def test_contexts_that_are_cut_are_told(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    from lm_eval.api.instance import Instance

    from gossamer.evaluation.harness import Gossamer

    model = Gossamer(str(checkpoint), threads=1, max_length=20)
    long, short = model.tok_encode(" ".join(WORDS * 3)), model.tok_encode("the net")
    assert len(long) > 20
    (cut, _), (kept, _) = model._loglikelihood_tokens([(None, long, short), (None, long[len(short) - 21 :], short)])
    left_out = "contexts are longer than max_length 20 leaves room for: their beginnings are left out"
    assert [record.getMessage() for record in caplog.records] == [f"1 {left_out}"]
    assert cut == kept
    caplog.clear()
    asked = {"until": [], "max_gen_toks": 4, "do_sample": False}
    requests = [Instance("generate_until", {}, (context, asked), 0) for context in (" ".join(WORDS * 3), "the net")]
    model.generate_until(requests, disable_tqdm=True)
    assert [record.getMessage() for record in caplog.records] == [f"1 {left_out}"]


def test_what_a_model_says_of_its_texts_holds(tmp_path: Path) -> None:
    """As for the harness's `hf` model, which goes by generation_config.json."""
    import torch
    import transformers
    from lm_eval.api.instance import Instance

    from gossamer.evaluation.harness import Gossamer

    folder = tiny_llama(tmp_path / "tiny")
    asked, found = {"until": [], "max_gen_toks": 12, "do_sample": False}, []
    for said in ({}, {"repetition_penalty": 1.8, "do_sample": True, "top_k": 3}):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **said}))
        model = Gossamer(str(folder), threads=1, activations="f32")
        found += model.generate_until([Instance("generate_until", {}, ("the net", asked), 0)], disable_tqdm=True)
        ids = torch.tensor([model.tok_encode("the net")])
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        written = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert found[-1] == model.tokenizer.decode(written.tolist())
    assert found[0] != found[1]
    drawn = model._text("the net", {"until": [], "max_gen_toks": 12, "do_sample": True}).text.stats.sampling
    assert (drawn.temperature, drawn.top_k) == (1.0, 3)
