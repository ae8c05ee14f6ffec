"""Finetuning whole checkpoints: zeros, rounding, resuming after a kill, and what goes wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer import _core
from gossamer.checkpoints import open_checkpoint
from gossamer.cli import main
from gossamer.errors import GossamerError, naming
from gossamer.finetune.options import SCORES, Options, Parts
from gossamer.packing.convert import convert

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from finetune_runs import TEXT, run, weights  # noqa: E402
from gossamer.finetune.batches import text_batch  # noqa: E402
from gossamer.finetune.masks import Masks  # noqa: E402
from gossamer.finetune.sparsegpt_masks import raise_zeros  # noqa: E402
from gossamer.finetune.trainer import Interrupted  # noqa: E402
from gossamer.nn import decoder as torch_decoder  # noqa: E402


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "int8", "group": 32},
        {"weights": "int4", "group": 32, "accumulate": 2},
        {"weight_decay": 0.1, "precision": "bf16", "recompute": True, "loss": Parts(0.5, 0.0, 1.0)},
    ],
)
def test_zeros_stay_zero_and_all_else_moves(files: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = run(files, tmp_path / "out", **options)
    before, after = weights(files / "half"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, values in after.items():
        if "_proj" in name:
            assert (values[before[name] == 0] == 0).all()
            assert not np.signbit(values[values == 0]).any()
        assert not np.array_equal(values, before[name]), name
    assert report.zeros == 0.5
    assert report.curve[-1]["perplexity"] < report.curve[0]["perplexity"] / 2
    assert (report.tokens, report.steps) == (768, len(report.log))
    assert not (tmp_path / "out.training").exists()
    written = json.loads((tmp_path / "out" / "gossamer_finetune.json").read_text(encoding="utf-8"))
    assert written["curve"] == report.curve
    assert written["options"]["weights"] == report.options["weights"]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_packed_model_is_the_one_that_was_trained(files: Path, tmp_path: Path, weights: str) -> None:
    """Packing keeps zeros and values, float inputs give the same logits, and 8-bit ones stay in their bound."""
    report = run(files, tmp_path / "out", weights=weights, group=32)
    convert(tmp_path / "out", tmp_path / "packed", weights=weights, group=32)
    packed = gossamer.load(tmp_path / "packed", activations="f32")
    stored = open_checkpoint(tmp_path / "out")
    trained = torch_decoder.load(stored)
    ids = np.random.default_rng(0).integers(0, 300, 60)
    with torch.no_grad():
        expected = trained(torch.from_numpy(ids)[None]).logits[0]
    np.testing.assert_allclose(packed.logits(ids), expected, rtol=0, atol=5e-4)
    assert report.zeros == 0.5

    # Inputs that become 8 bits are each off by half a step of their group's scale at most.
    random = np.random.default_rng(1)
    for name, weight in packed.weights.items():
        values = dict(trained.named_parameters())[f"{name}.weight"].detach().numpy()
        np.testing.assert_array_equal(weight.unpack(), values)
        if name != "embed":
            x = random.standard_normal((4, weight.cols)).astype(np.float32)
            unit = 32
            _, scales, _ = _core.quantize_activations(x, unit)
            steps = np.repeat(scales, unit, axis=1)[:, : weight.cols].astype(np.float64)
            wide = np.abs(values).astype(np.float64)
            exact = x.astype(np.float64) @ values.T.astype(np.float64)
            bound = steps / 2 @ wide.T + 16 * np.finfo(np.float32).eps * (np.abs(x) @ wide.T)
            assert (np.abs(_core.linear(weight, x, "a8") - exact) <= bound).all(), name


def test_a_cubic_schedule_reaches_its_sparsity(files: Path, tmp_path: Path) -> None:
    for scores in SCORES:
        report = run(files, tmp_path / scores, student="dense", schedule="cubic", sparsity=0.75, scores=scores)
        for name, values in weights(tmp_path / scores).items():
            if "_proj" in name:
                assert (values == 0).sum() == round(0.75 * values.size), name
        assert report.zeros == 0.75
    masks = [weights(tmp_path / s)["model.layers.0.mlp.up_proj.weight"] != 0 for s in SCORES]
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(masks, 2))


def matrices(student: torch_decoder.Decoder) -> dict[str, Any]:
    return {f"{name}.weight": student.get_parameter(f"{name}.weight") for name in student.config.linears}


def test_zeros_that_sparsegpt_raises_are_made_up_for(files: Path) -> None:
    windows = torch.from_numpy(np.random.default_rng(0).integers(3, 300, (20, 32)))
    before = torch_decoder.load(files / "half")
    outputs = before(windows, logits=False).hidden[0].detach()
    errors = []
    for scores in ("sparsegpt", "magnitude"):
        student = torch_decoder.load(files / "half")
        values = dict(student.named_parameters())
        masks = Masks(matrices(student), "cubic", 0.55, scores)
        zeros = masks.due(0, 0.9)
        old = {name: keep.clone() for name, keep in masks.keep.items()}
        if scores == "sparsegpt":
            raise_zeros(
                student, text_batch([(row, -1) for row in windows.numpy()], 32), zeros, values, masks.keep, nullcontext
            )
        else:
            masks.drop(zeros, values)
            with torch.no_grad():
                masks.apply(values)
        for name, keep in masks.keep.items():
            assert int((~keep).sum()) == zeros[name] == round(0.55 * keep.numel())
            assert not (keep & ~old[name]).any()
            assert (values[name][~keep] == 0).all()
        change = student(windows, logits=False).hidden[0].detach() - outputs
        errors.append(float(change.square().sum()))
    assert errors[0] < 0.85 * errors[1]  # the inputs of a random model hardly hang together


def test_inputs_that_are_not_finite_are_named(files: Path) -> None:
    student = torch_decoder.load(files / "half")
    with torch.no_grad():
        student.layers[1].mlp_norm.weight[3] = torch.nan
    values = dict(student.named_parameters())
    masks = Masks(matrices(student), "cubic", 0.7, "sparsegpt")
    windows = text_batch([(np.full(8, 5, np.int32), -1)] * 2, 8)
    with pytest.raises(GossamerError, match=r"layers\.1\.gate: the inputs measured in calibration are not finite"):
        raise_zeros(student, windows, masks.due(0, 0.9), values, masks.keep, nullcontext)


def test_steps_that_are_long_do_not_miss_the_end_of_the_schedule(files: Path, tmp_path: Path) -> None:
    report = run(files, tmp_path / "out", student="dense", schedule="cubic", sparsity=0.75, batch=12)
    assert (report.steps, report.zeros) == (2, 0.75)


def test_torch_has_its_threads_again_afterwards(files: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(files, tmp_path / "out", threads=1, tokens=128)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_rate_rises_and_falls() -> None:
    options = Options(lr=1.0, warmup=0.1)
    assert [options.rate(p) for p in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])
    assert Options(lr=1.0, warmup=0.1, lr_schedule="linear").rate(0.325) == pytest.approx(0.75)
    assert Options(lr=1.0, warmup=0, lr_schedule="constant").rate(1.0) == 1.0


def test_a_time_budget_ends_the_run(files: Path, tmp_path: Path) -> None:
    report = run(files, tmp_path / "out", tokens=0, budget_minutes=0.01)
    assert report.seconds >= 0.6
    assert report.log[-1]["lr"] < report.log[len(report.log) // 2]["lr"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from gossamer.finetune import Options, finetune

files, dst, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
steps = []  # when they ended
def train(dst, tokens, pipe):
    def tell(done, total, what):
        if what.startswith("step"):
            steps.append(time.monotonic())
            os.write(pipe, b".")
    options = Options(length=32, batch=2, tokens=tokens, lr=2e-3, precision="f32", validations=1, threads=1,
                      save_steps=1, weights="int4", group=32)
    finetune(files / "half", dst, teacher=files / "dense", data=[files / "text.txt"], options=options, progress=tell)

train(dst.with_name("warm"), 512, os.open(os.devnull, os.O_WRONLY))  # torch loads much of itself late
step = (steps[-1] - steps[0]) / (len(steps) - 1)  # without what comes before and after, or the run could end unkilled
for run in range(kills + 1):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        train(dst, 4096, theirs)
        os._exit(0)
    os.close(theirs)
    if run < kills:
        os.read(ours, 1)
        time.sleep(random.uniform(0, step))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(ours)
    assert os.WIFSIGNALED(status) if run < kills else status == 0, (run, status)
"""


def test_ten_kills_leave_the_same_weights(files: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, in the middle of a step or of saving a state, then the same call again."""
    run(files, tmp_path / "whole", tokens=4096, weights="int4", group=32)
    command = [sys.executable, "-c", KILLED, str(files), str(tmp_path / "killed"), "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, values in whole.items():
        assert values.tobytes() == killed[name].tobytes(), name
    reports = [json.loads((tmp_path / n / "gossamer_finetune.json").read_text("utf-8")) for n in ("whole", "killed")]
    logs = [[{k: v for k, v in entry.items() if k != "seconds"} for entry in report["log"]] for report in reports]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("schedule", [{}, *({"schedule": "cubic", "sparsity": 0.7, "scores": s} for s in SCORES[1:])])
def test_ctrl_c_saves_and_the_same_call_goes_on(files: Path, tmp_path: Path, schedule: dict[str, Any]) -> None:
    run(files, tmp_path / "whole", **schedule)

    def interrupt(_done: int, _total: int, what: str) -> None:
        if what.startswith("step 5:"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"stopped after 5 steps; the same command goes on from .*out\.training"):
        run(files, tmp_path / "out", progress=interrupt, **schedule)
    assert not (tmp_path / "out").exists()
    with pytest.raises(GossamerError, match=r"was begun with seed 0, this one has 1"):
        run(files, tmp_path / "out", seed=1, **schedule)
    report = run(files, tmp_path / "out", **schedule)
    assert report.steps == 12
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "out")
    for name, values in whole.items():
        assert values.tobytes() == stopped[name].tobytes(), name


def test_other_data_and_other_models_are_not_gone_on_with(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "own")

    def interrupt(_done: int, _total: int, what: str) -> None:
        if what.startswith("step 2:"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run(tmp_path / "own", tmp_path / "out", progress=interrupt)
    (tmp_path / "own" / "text.txt").write_text(TEXT * 39 + "Another end.", encoding="utf-8")
    with pytest.raises(GossamerError, match="the data has changed since the run began"):
        run(tmp_path / "own", tmp_path / "out")
    (tmp_path / "own" / "text.txt").write_bytes((files / "text.txt").read_bytes())
    os.utime(tmp_path / "own" / "dense" / "model.safetensors", ns=(1, 1))
    with pytest.raises(GossamerError, match=r"was begun with .*dense.model\.safetensors \["):
        run(tmp_path / "own", tmp_path / "out")
    assert (tmp_path / "out.training" / "state.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(files: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GossamerError, match=r"step \d+, after \d+ tokens: .*(nan|inf).*state saved last is in .*out\.training"
    ):
        run(files, tmp_path / "out", lr=1e30, clip=0, warmup=0, save_steps=1)
    assert not (tmp_path / "out").exists()
    report = run(files, tmp_path / "fresh", lr=2e-3)
    assert np.isfinite(report.curve[-1]["perplexity"])


def test_a_full_disk_keeps_the_last_state(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.finetune import trainer

    saves = []
    real = trainer.save_state

    def full(*arguments: Any) -> None:
        saves.append(1)
        if len(saves) == 3:
            with monkeypatch.context() as patch:
                patch.setattr("gossamer.safetensors_io._CHUNK", 4096)
                patch.setattr("gossamer.safetensors_io.SafetensorsWriter._write", no_space)
                real(*arguments)
        real(*arguments)

    def no_space(self: Any, _data: Any) -> None:
        with naming(self.path, "cannot write"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_state", full)
    with pytest.raises(GossamerError, match=r"state\.safetensors: cannot write: No space left on device"):
        run(files, tmp_path / "out", save_steps=1)
    assert sorted(p.name for p in (tmp_path / "out.training").glob("*.safetensors*")) == ["state.safetensors"]
    monkeypatch.setattr(trainer, "save_state", real)
    run(files, tmp_path / "whole")
    run(files, tmp_path / "out", save_steps=1)
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(values.tobytes() == stopped[name].tobytes() for name, values in whole.items())


def test_a_run_keeps_the_limit_it_was_begun_with(files: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int, what: str) -> None:
        if what.startswith("step 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path / "out", progress=stop, tokens=0, save_steps=1)
    tokens = run(files, tmp_path / "out", tokens=0, save_steps=1, budget_minutes=10.0).tokens
    assert tokens == run(files, tmp_path / "whole", tokens=0).tokens


def test_the_command(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["finetune", str(files / "half"), str(tmp_path / "out"), "--teacher", str(files / "dense")]
    line += ["--data", str(files / "text.txt"), "--length", "32", "--batch", "2", "--tokens", "512", "--kl", "0.5"]
    line += ["--weights", "int8", "--plot", str(tmp_path / "curve.svg")]
    assert main(line) == 0
    out, _ = capsys.readouterr()
    assert "8 steps, 512 tokens, 50.0% zeros" in out
    assert "rounded for convert --weights int8 --group 64 --head auto" in out
    assert "perplexity" in (tmp_path / "curve.svg").read_text("utf-8")
    assert main(line) == 1
    assert "exists already; --force replaces it" in capsys.readouterr().err
    (tmp_path / "out" / "config.json").write_text("{", encoding="utf-8")
    assert main([*line, "--force"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["model_type"] == "llama"
    assert not (tmp_path / "out.training").exists()
    capsys.readouterr()
    shutil.rmtree(tmp_path / "out")
    assert main([*line[:-1], str(tmp_path / "gone" / "curve.svg")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main([*line, "--json"]) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out)["options"]["loss"] == {"ce": 1.0, "squarehead": 1.0, "kl": 0.5}
