"""The parts of the loss against their definitions, written out in a few lines of numpy and float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import tiny_llama

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.finetune import losses  # noqa: E402
from gossamer.nn import decoder as torch_decoder  # noqa: E402

LENGTHS = (30, 17, 1)  # of three sequences, the shorter ones padded


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, Any]:
    models = {
        name: torch_decoder.load(tiny_llama(tmp_path / name, seed=seed))
        for name, seed in (("student", 1), ("teacher", 2))
    }
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 300, (len(LENGTHS), max(LENGTHS))))
    real = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        found = {name: model(tokens) for name, model in models.items()}
    return {"models": models, "tokens": tokens, "real": real, **found}


def log_softmax(logits: Any) -> Any:
    wide = logits.numpy().astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def test_squarehead_is_its_definition(outputs: dict[str, Any]) -> None:
    expected = 0.0
    for s, t in zip(outputs["student"].hidden, outputs["teacher"].hidden, strict=True):
        rows_s = np.concatenate([s[i, :n].numpy() for i, n in enumerate(LENGTHS)]).astype(np.float64)
        rows_t = np.concatenate([t[i, :n].numpy() for i, n in enumerate(LENGTHS)]).astype(np.float64)
        expected += np.mean((rows_s - rows_t) ** 2) / (np.mean(rows_t**2) + losses.EPS)
    got = losses.squarehead(outputs["student"].hidden, outputs["teacher"].hidden, outputs["real"])
    assert float(got) == pytest.approx(expected, rel=1e-5)
    assert float(losses.squarehead(outputs["teacher"].hidden, outputs["teacher"].hidden, outputs["real"])) == 0


@pytest.mark.parametrize("chunk", [7, 4096])
def test_cross_entropy_and_divergence_are_their_definitions(
    outputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    student, teacher = outputs["models"]["student"], outputs["models"]["teacher"]
    mine, aim = log_softmax(outputs["student"].logits), log_softmax(outputs["teacher"].logits)
    ce = [-mine[i, p, outputs["tokens"][i, p + 1]] for i, n in enumerate(LENGTHS) for p in range(n - 1)]
    kl = [np.sum(np.exp(aim[i, p]) * (aim[i, p] - mine[i, p])) for i, n in enumerate(LENGTHS) for p in range(n)]
    hidden = outputs["student"].hidden[-1].requires_grad_()
    got = losses.token_losses(
        student, hidden, outputs["tokens"], outputs["real"], teacher, outputs["teacher"].hidden[-1]
    )
    assert float(got[0].detach()) == pytest.approx(np.mean(ce), rel=1e-5)
    assert float(got[1].detach()) == pytest.approx(np.mean(kl), rel=1e-5)
    (got[0] + got[1]).backward()
    assert (hidden.grad[~outputs["real"]] == 0).all()  # padding teaches nothing
    assert (hidden.grad[outputs["real"]] != 0).any(-1).all()
    alone = losses.token_losses(student, outputs["student"].hidden[-1], outputs["tokens"], outputs["real"])
    assert (float(alone[0].detach()), float(alone[1])) == (pytest.approx(np.mean(ce), rel=1e-5), 0.0)


def test_chunks_have_the_same_gradients(outputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for chunk in (5, 4096):
        monkeypatch.setattr(losses, "_CHUNK", chunk)
        student = outputs["models"]["student"]
        student.zero_grad()
        parts = losses.token_losses(
            student,
            outputs["student"].hidden[-1],
            outputs["tokens"],
            outputs["real"],
            outputs["models"]["teacher"],
            outputs["teacher"].hidden[-1],
        )
        sum(parts).backward()
        gradients.append(student.head.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
