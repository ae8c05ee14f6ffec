"""From a task file to a packed model, with stops on the way, and what is refused before anything is written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from commands import usage_error
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.errors import GossamerError
from gossamer.finetune.options import Options, Parts

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from finetune_runs import weights  # noqa: E402
from gossamer.finetune.task import finetune_task  # noqa: E402
from gossamer.finetune.task_data import TaskFiles  # noqa: E402
from gossamer.finetune.trainer import Interrupted  # noqa: E402

QUICK: dict[str, Any] = {
    "length": 64, "batch": 2, "lr": 4e-3, "precision": "f32", "validations": 1, "threads": 1, "weights": "int8",
}  # fmt: skip
CUBIC = {"schedule": "cubic", "sparsity": 0.5, "tokens": 2048, "top": 8, "loss": Parts(0.5, 0.0, 1.0), "save_steps": 2}
WORDS = ("net", "web", "spider", "thread", "weaver")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of two words each, and the second one as the completion."""
    path = tmp_path_factory.mktemp("task") / "words.jsonl"
    lines = [{"prompt": f"{a} {b} {n}:", "completion": f" {b}"} for a in WORDS for b in WORDS for n in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def dense(tokens: int = 1024) -> Options:
    return Options(**{**QUICK, "weights": "stored", "schedule": "dense", "tokens": tokens, "loss": Parts(1, 0, 0)})


def train(files: Path, dst: Path, task: Path, progress: Any = None, **change: Any) -> Any:
    options = Options(**{**QUICK, **CUBIC, **change})
    return finetune_task(
        files / "dense", dst, TaskFiles(task, 0.2), options=options, dense_first=dense(), progress=progress
    )


def zeros(path: Path) -> dict[str, float]:
    return {name: float((values == 0).mean()) for name, values in weights(path).items() if "_proj" in name}


@pytest.fixture(scope="module")
def whole(files: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(files, folder, task)
    return folder


def test_every_stage_leaves_what_it_is_for(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["dense", "packed", "run.json", "sparse"]
    assert set(zeros(whole / "dense").values()) == {0.0}
    assert set(zeros(whole / "sparse").values()) == {0.5}
    reports = {name: json.loads((whole / name / "gossamer_finetune.json").read_text()) for name in ("dense", "sparse")}
    for report in reports.values():
        assert report["curve"][-1]["ce"] < report["curve"][0]["ce"]
        assert 0 < report["log"][0]["real_tokens"] <= 128
    assert reports["sparse"]["curve"][0]["ce"] == pytest.approx(reports["dense"]["curve"][-1]["ce"], rel=0.02), (
        "the student begins as the trained teacher, but for its rounding"
    )
    packed = gossamer.load(whole / "packed", activations="f32", threads=1)
    stored = weights(whole / "sparse")
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(packed.weights["layers.1.up"].unpack(), stored[name])


@pytest.mark.parametrize("where", ["dense: step 3:", "sparse: step 5:"])
def test_a_stop_in_any_stage_changes_nothing(files: Path, task: Path, whole: Path, tmp_path: Path, where: str) -> None:
    def interrupt(_done: int, _total: int, what: str) -> None:
        if what.startswith(where):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(files, tmp_path / "run", task, interrupt)
    assert (tmp_path / "run" / "dense").exists() == where.startswith("sparse")
    with pytest.raises(GossamerError, match=r"run: was begun with seed 0, this run has 1; --force begins anew"):
        train(files, tmp_path / "run", task, seed=1)
    train(files, tmp_path / "run", task)
    for stage in ("dense", "sparse"):
        one, other = weights(whole / stage), weights(tmp_path / "run" / stage)
        for name, values in one.items():
            assert values.tobytes() == other[name].tobytes(), (stage, name)


@pytest.mark.parametrize("stage", ["dense: step 3:", "sparse: step 5:", "none"])
def test_a_run_whose_samples_have_changed_is_not_gone_on_with(
    files: Path, task: Path, tmp_path: Path, stage: str
) -> None:
    def interrupt(_done: int, _total: int, what: str) -> None:
        if what.startswith(stage):
            os.kill(os.getpid(), signal.SIGINT)

    copy = tmp_path / "words.jsonl"
    copy.write_bytes(task.read_bytes())
    with contextlib.suppress(Interrupted):
        train(files, tmp_path / "run", copy, interrupt)
    assert (tmp_path / "run" / "packed").exists() == (stage == "none")
    copy.write_bytes(task.read_bytes() + task.read_bytes())
    with pytest.raises(GossamerError, match="run: was begun with samples "):
        train(files, tmp_path / "run", copy)


def test_the_top_alone_is_nearly_the_whole_divergence(files: Path, task: Path, tmp_path: Path) -> None:
    """With as many tokens as there are, nothing is left out."""
    for name, top in (("all", 0), ("top", 320)):
        options = Options(**{**QUICK, **CUBIC, "weights": "stored", "tokens": 512, "top": top})
        finetune_task(files / "dense", tmp_path / name, TaskFiles(task, 0.2), options=options)
    one, other = weights(tmp_path / "all" / "sparse"), weights(tmp_path / "top" / "sparse")
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=0, atol=2e-3, err_msg=name)


def test_a_model_learns_a_task_without_a_teacher(
    files: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["finetune", str(files / "dense"), str(tmp_path / "run"), "--task", str(task), "--held-out", "0.2"]
    line += ["--schedule", "cubic", "--sparsity", "0.6", "--raising", "0.1", "--weights", "int4", "--head", "int4"]
    line += ["--length", "64", "--batch", "2", "--tokens", "512", "--threads", "1", "--json"]
    assert main(line) == 0
    done = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in done["rows"]] == ["before int8:64", "before int4:32", "sparse"]
    assert done["trained"]["sparse"]["options"]["loss"] == {"ce": 1.0, "squarehead": 0.0, "kl": 0.0}
    rival = ["finetune", line[1], str(tmp_path / "rival"), *line[3:7], "--schedule", "dense", *line[-9:]]
    assert main(rival) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["row"] for row in rows] == ["before int8:64", "before int4:32", "dense"]
    packed = gossamer.load(tmp_path / "run" / "packed")
    assert {weight.type for weight in packed.weights.values()} == {"int4"}


def test_a_pruned_student_keeps_its_zeros(files: Path, task: Path, tmp_path: Path) -> None:
    options = Options(**{**QUICK, "tokens": 512})
    task_files = TaskFiles(task, 0.2)
    done = finetune_task(files / "half", tmp_path / "run", task_files, options=options, teacher=files / "dense")
    assert done.teacher == files / "dense"
    before, after = weights(files / "half"), weights(done.sparse)
    assert all((after[name][before[name] == 0] == 0).all() for name in after if "_proj" in name)


def test_the_command(files: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["finetune", str(files / "dense"), str(tmp_path / "run"), "--task", str(task), "--held-out", "0.2"]
    line += ["--dense-first", "--dense-tokens", "512", "--schedule", "cubic", "--sparsity", "0.6", "--scores", "admm"]
    line += ["--weights", "int4", "--group", "32", "--length", "64", "--batch", "2", "--tokens", "512"]
    line += ["--precision", "f32", "--threads", "1", "--metric", "words"]
    assert main(line) == 0
    out, _ = capsys.readouterr()
    head, _, *rows = out.splitlines()
    assert head.split() == ["model", "words", "(less)", "exact", "zeros", "MB", "bits/weight", "tokens/s"]
    assert [row.split("  ")[0] for row in rows[:3]] == ["dense int8:64", "dense int4:32", "sparse"]
    assert "60.0%" in rows[2]
    assert f"packed: {tmp_path / 'run' / 'packed'}" in out
    kept = json.loads((tmp_path / "run" / "task.json").read_text(encoding="utf-8"))["rows"]
    assert main(["eval", kept_name := str(tmp_path / "run" / "packed"), "--task", str(task), "--held-out", "0.2",
                 "--metric", "words", "--threads", "1", "--json"]) == 0, kept_name  # fmt: skip
    again = json.loads(capsys.readouterr().out)
    assert (again["value"], again["samples"]) == (kept[2]["value"], kept[2]["samples"])
    assert kept[2]["zeros"] == pytest.approx(0.6, abs=0.001)
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained"] == {}, "everything is there"
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    assert main([*line, "--force", "--seed", "1"]) == 1
    assert "notes.txt: is not of such a run; it is left as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"held_out": 1e-9}, "no samples are held out"),
        ({"length": 8}, r"words\.jsonl:\d+: the sample has \d+ tokens, and a window holds 8"),
        ({"length": 500}, "length 500 is more than the models' context of 128 tokens"),
        ({"schedule": "fixed", "sparsity": 0.0}, "the student has no zeros to keep"),
    ],
)
def test_what_is_refused_leaves_nothing(
    files: Path, task: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    chosen = {**QUICK, **CUBIC, **change}
    held_out = chosen.pop("held_out", 0.2)
    with pytest.raises(GossamerError, match=said):
        finetune_task(files / "dense", tmp_path / "run", TaskFiles(task, held_out), options=Options(**chosen))
    assert not list(tmp_path.iterdir())


def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    data, task = ["finetune", "a", "b", "--data", "t"], ["finetune", "a", "b", "--task", "t"]
    assert "--metric: goes with --task" in usage_error(capsys, *data, "--teacher", "c", "--metric", "words")
    assert "--teacher" in usage_error(capsys, *data)
    assert "--validation: not allowed" in usage_error(capsys, *task, "--validation", "0.1")
    assert "--dense-lr: goes with --dense-first" in usage_error(capsys, *task, "--dense-lr", "0.1")
    assert "--held-out" in usage_error(capsys, *task, "--held-out", "0")
    assert "--data" in usage_error(capsys, "finetune", "a", "b")


def test_a_checkpoint_of_a_task_is_an_ordinary_one(whole: Path) -> None:
    assert open_checkpoint(whole / "sparse").tokenizer().eos_ids


def test_a_student_that_begins_as_a_dense_teacher_has_no_zeros_to_keep(files: Path, tmp_path: Path) -> None:
    options = Options(schedule="fixed")
    with pytest.raises(GossamerError, match="begins as the dense teacher has no zeros to keep: raise them"):
        finetune_task(
            files / "dense",
            tmp_path / "run",
            TaskFiles(files / "none.jsonl", 0.2),
            options=options,
            dense_first=dense(),
        )
    assert not (tmp_path / "run").exists()  # before anything is trained
