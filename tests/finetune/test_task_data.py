"""Samples in windows: each sees itself alone, completions alone count, and every pass has each sample once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.errors import GossamerError
from gossamer.text.tokenizer import Tokenizer
from tiny import EOS_ID, tiny_llama, tiny_tokenizer

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.finetune.losses import Full, token_losses  # noqa: E402
from gossamer.finetune.options import Options, Parts  # noqa: E402
from gossamer.finetune.task_data import TaskFiles, pack, prepare_task  # noqa: E402
from gossamer.finetune.teacher import Teacher  # noqa: E402
from gossamer.finetune.trainer import Trainer  # noqa: E402
from gossamer.nn import decoder as torch_decoder  # noqa: E402

LETTERS = "abcdefgh"


def write(path: Path, count: int, first: int = 0) -> Path:
    """Words to spell: prompts and completions of several lengths."""
    random = np.random.default_rng([first])
    with path.open("w", encoding="utf-8") as file:
        for number in range(first, first + count):
            word = "".join(random.choice(list(LETTERS), random.integers(1, 9)))
            file.write(json.dumps({"prompt": f"{number} {word}:", "completion": " " + " ".join(word)}) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepare(write(tmp_path_factory.mktemp("task") / "t.jsonl", 60))


def prepare(path: Path, held_out: Any = 0.2, length: int = 64) -> Any:
    tokenizer = Tokenizer(tiny_tokenizer(), eos_ids=[EOS_ID])
    return prepare_task(TaskFiles(path, held_out), tokenizer, length=length, context=128, default=64, seed=3)


def test_every_pass_has_each_sample_once_and_other_company(data: Any) -> None:
    count = len(data.samples.begins)
    passes, at = [], 0
    for number in range(3):
        windows = len(data._passes.plan(number))
        batch = data.batch(at, windows)
        at += windows
        starts = batch.places[batch.real & (torch.arange(64) == batch.first)]
        assert sorted(starts.tolist()) == data.samples.starts[:-1].tolist()
        assert int(batch.real.sum()) == len(data.train)
        passes.append(batch.places.numpy())
    assert len({rows.tobytes() for rows in passes}) == 3
    assert count == len(data.samples.starts) - 1
    # A batch over the end of a pass, from an object that has seen nothing yet, as after a stop.
    first = data.windows
    again = prepare_like(data).batch(first - 1, 3)
    np.testing.assert_array_equal(again.tokens, data.batch(first - 1, 3).tokens)


def prepare_like(data: Any) -> Any:
    return type(data)(data.samples, data.held_out, data.length, data.seed)


def test_targets_are_the_completions_and_nothing_else(data: Any) -> None:
    batch = data.batch(0, data.windows)
    assert (batch.asked == (batch.targets >= 0)).all()
    wanted = sorted(
        tuple(data.train[begin:end].tolist())
        for begin, end in zip(data.samples.begins, data.samples.starts[1:], strict=True)
    )
    found: dict[tuple[int, int], list[int]] = {}
    for row, place in zip(*np.nonzero(batch.asked.numpy()), strict=True):
        found.setdefault((row, int(batch.first[row, place])), []).append(int(batch.targets[row, place]))
        assert int(data.train[batch.places[row, place] + 1]) == int(batch.targets[row, place])
    assert sorted(map(tuple, found.values())) == wanted
    assert all(tokens[-1] == EOS_ID for tokens in wanted)


def test_a_window_is_filled_by_what_fits() -> None:
    lengths = np.array([40, 30, 20, 24, 64, 34])
    assert pack(lengths, [0, 1, 2, 3, 4, 5], 64) == [[0, 2], [1, 3], [4], [5]] or pack(
        lengths, [0, 1, 2, 3, 4, 5], 64
    ) == [[0, 3], [1, 2], [4], [5]]
    many = np.random.default_rng(0).integers(5, 30, 2000)
    plan = pack(many, range(2000), 256)
    assert sorted(number for inside in plan for number in inside) == list(range(2000))
    assert max(many[inside].sum() for inside in plan) <= 256
    assert many.sum() / (256 * len(plan)) > 0.97


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {name: torch_decoder.load(tiny_llama(folder / name, seed=seed)) for seed, name in enumerate(("s", "t"))}


def test_samples_in_one_window_are_what_they_are_alone(data: Any, models: dict[str, Any]) -> None:
    batch = data.batch(0, 2)
    with torch.no_grad():
        logits = models["s"](batch.tokens, first=batch.first).logits
        for row in range(2):
            starts = sorted(set(batch.first[row][batch.real[row]].tolist()))
            assert len(starts) > 1
            for start in starts:
                mine = (batch.first[row] == start) & batch.real[row]
                alone = models["s"](batch.tokens[row][mine][None]).logits[0]
                torch.testing.assert_close(logits[row][mine], alone, rtol=0, atol=1e-5)


def loss_of(models: dict[str, Any], batch: Any, targets: Any) -> Any:
    student = models["s"]
    student.zero_grad()
    asked = batch.asked
    with torch.no_grad():
        aim = Full(models["t"], models["t"](batch.tokens, first=batch.first, logits=False).hidden[-1][asked])
    hidden = student(batch.tokens, first=batch.first, logits=False).hidden[-1]
    loss, *_ = token_losses(student, hidden[asked], targets[asked], Parts(1, 0, 1), aim)
    loss.backward()
    return loss.detach(), {name: value.grad.clone() for name, value in student.named_parameters()}


def test_targets_of_prompts_and_padding_change_nothing(data: Any, models: dict[str, Any]) -> None:
    batch = data.batch(0, 2)
    loss, gradients = loss_of(models, batch, batch.targets)
    other = torch.where(batch.asked, batch.targets, torch.randint(0, 300, batch.targets.shape))
    assert not torch.equal(other, batch.targets)
    again, same = loss_of(models, batch, other)
    assert torch.equal(loss, again)
    assert all(torch.equal(values, same[name]) for name, values in gradients.items())
    changed = torch.where(batch.asked, (batch.targets + 1) % 300, batch.targets)
    assert not torch.equal(loss, loss_of(models, batch, changed)[0]), "else nothing counts"


def test_the_teachers_likeliest_tokens_are_computed_once(
    data: Any, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(loss=Parts(1, 0, 1), top=4)
    teacher = Teacher(models["t"], options, tmp_path, len(data.train))
    batch = data.batch(0, data.windows)
    _, fresh = teacher.look(batch)
    asked = batch.asked
    with torch.no_grad():
        scores = torch.log_softmax(models["t"](batch.tokens, first=batch.first).logits[asked], -1)
    torch.testing.assert_close(fresh.scores, scores.topk(4).values, rtol=0, atol=1e-5)
    assert torch.equal(fresh.ids, scores.topk(4).indices)
    assert int(teacher.known.sum()) == int(asked.sum())
    teacher.flush()

    later = Teacher(models["t"], options, tmp_path, len(data.train))
    later.known.copy_(teacher.known)
    for one in (teacher, later):
        monkeypatch.setattr(one, "_decoder", None)
        other = data.batch(data.windows, 2)  # in other windows, in another order
        _, kept = one.look(other)
        rows = {place: row for row, place in enumerate(batch.places[asked].tolist())}
        order = [rows[place] for place in other.places[other.asked].tolist()]
        assert torch.equal(kept.ids, fresh.ids[order])
        assert torch.equal(kept.scores, fresh.scores[order])


def test_samples_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", 9)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "the " * 50, "completion": "net " * 20}) + "\n")
    other = write(tmp_path / "h.jsonl", 3, 100)
    with pytest.raises(GossamerError, match=r"t\.jsonl:10: the sample has \d+ tokens, and a window holds 64"):
        prepare(path, other)
    data = prepare(path, other, length=0)
    assert data.length == data.samples.lengths.max() > 64, "windows are as long as the longest sample"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "the " * 150, "completion": "net"}) + "\n")
    with pytest.raises(GossamerError, match=r"t\.jsonl:11: the sample has \d+ tokens, and the model's context holds"):
        prepare(path, other, length=0)


@pytest.mark.parametrize("weights", [Parts(1.0, 0.0, 0.0), Parts(0.5, 0.0, 1.0)], ids=["ce", "ce and kl"])
def test_a_step_of_several_passes_is_that_of_one(tmp_path: Path, weights: Parts) -> None:
    """Samples are of any lengths: what passes look at counts token by token, however a step is divided."""
    tiny_llama(tmp_path / "model")
    data = prepare(write(tmp_path / "t.jsonl", 60))
    batch = data.batch(0, 4)
    counts = [int(part.asked.sum()) for part in batch.split(1)]
    assert len(set(counts)) > 1, "so that a mean of means would be another"
    records, gradients = [], []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        options = Options(
            loss=weights, length=64, batch=size, accumulate=accumulate, precision="f32", schedule="dense", clip=0.0
        )
        student, teacher = (torch_decoder.load(tmp_path / "model") for _ in range(2))
        with torch.no_grad():
            teacher.embed.weight.mul_(2)
        folder = tmp_path / f"{size}"
        folder.mkdir()
        trainer = Trainer(student, teacher, data, options, folder, 4096)
        records.append(trainer.step())
        gradients.append({name: value.grad.clone() for name, value in trainer.values.items()})
    for record, found in zip(records[1:], gradients[1:], strict=True):
        for name in ("loss", "ce", "kl", "gradient"):
            assert record[name] == pytest.approx(records[0][name], rel=1e-5)
        for name, values in found.items():
            torch.testing.assert_close(values, gradients[0][name], rtol=1e-4, atol=1e-6)
