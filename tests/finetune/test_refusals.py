"""Finetuning that cannot begin: each reason is one line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.finetune.options import Options, Parts
from tiny import save_tokenizer, tiny_llama

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from finetune_runs import QUICK, run  # noqa: E402
from gossamer.finetune.pipeline import finetune  # noqa: E402
from gossamer.finetune.trainer import Trainer  # noqa: E402
from gossamer.nn import decoder as torch_decoder  # noqa: E402


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "dense"}, "the student has no zeros to keep"),
        ({"student": "wide"}, "hidden is 64 in the student and 96 in the teacher"),
        ({"student": "deep"}, "layers is 3 in the student and 2 in the teacher"),
        ({"student": "other"}, "their tokenizers differ"),
        ({"length": 100000}, r"length 100000 is more than the model's context of 128"),
        ({"data": "short"}, r"short\.txt: \d+ tokens; training needs at least one window of 32"),
        ({"data": "none"}, r"none\.txt: No such file"),
        ({"data": "binary"}, r"binary\.txt: not UTF-8"),
        ({"lr": -1.0}, "lr must be a finite number above 0"),
        ({"weights": "int2"}, "weights must be one of stored, int8, int4"),
        ({"schedule": "cubic"}, "cubic needs one"),
        ({"raising": 0.2}, "raising 0.2 goes with the schedule cubic: fixed has none"),
        ({"head": "int4"}, "head int4 goes with weights int8 or int4"),
        ({"scores": "movement"}, "scores movement go with the schedule cubic: fixed drops nothing"),
        ({"top": 8}, "top 8 goes with a divergence in the loss"),
        ({"student": "broken"}, r"broken: tensor \S*up_proj\.weight has NaN or infinite values"),
        ({"loss": Parts(0, 0, 0)}, "parts of the loss"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    files: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    for name, overrides in (
        ("wide", {"hidden_size": 64}),
        ("deep", {"num_hidden_layers": 3}),
        ("other", {}),
    ):
        tiny_llama(tmp_path / name, sparsity=0.5, **overrides)
    tokenizer = tmp_path / "other" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8").replace("<|im_start|>", "<|begin|>"), encoding="utf-8")
    broken = torch_decoder.load(files / "half")
    with torch.no_grad():
        broken.layers[1].up.weight[3, 5] = torch.inf
    torch_decoder.save(broken, tmp_path / "broken", open_checkpoint(files / "half"))
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    student, data = change.pop("student", "half"), change.pop("data", "")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(GossamerError, match=message) as caught:
        finetune(
            files / student if (files / student).exists() else tmp_path / student,
            tmp_path / "out",
            teacher=files / "dense",
            data=[tmp_path / f"{data}.txt" if data else files / "text.txt"],
            options=Options(**{**QUICK, **change}),
        )
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_line(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_losses", full)
    with pytest.raises(GossamerError, match="out of memory: a smaller batch"):
        run(files, tmp_path / "out")
    monkeypatch.setattr(Trainer, "_losses", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run(files, tmp_path / "out")


def test_a_folder_of_somebody_else_is_left_alone(files: Path, tmp_path: Path) -> None:
    notes = tmp_path / "out.training" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(GossamerError, match=r"out\.training: exists already and holds no training run"):
        run(files, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out.training", "notes.txt"]


def test_an_encoder_alone_is_told_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="it makes the model")
    config = transformers.BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert")
    (tmp_path / "text.txt").write_text("The spider spins. " * 40, encoding="utf-8")
    with pytest.raises(GossamerError, match=r"bert: is an encoder alone, and cannot be finetuned$"):
        finetune(tmp_path / "bert", tmp_path / "out", teacher=tmp_path / "bert", data=[tmp_path / "text.txt"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "text.txt"]
