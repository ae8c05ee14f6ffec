"""The parts of the loss against their definitions, written out in a few lines of numpy and float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import tiny_llama

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.finetune import losses  # noqa: E402
from gossamer.finetune.options import Parts  # noqa: E402
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


def asked(outputs: dict[str, Any]) -> tuple[Any, Any]:
    """Where the loss looks, and the token that comes next there, or -1."""
    real, tokens = outputs["real"], outputs["tokens"]
    targets = torch.full_like(tokens, -1)
    targets[:, :-1] = torch.where(real[:, 1:], tokens[:, 1:], -1)
    return real, targets[real]


def losses_of(outputs: dict[str, Any], hidden: Any, aim: Any = None, weights: Any = None) -> Any:
    there, targets = asked(outputs)
    student = outputs["models"]["student"]
    return losses.token_losses(student, hidden[there], targets, weights or Parts(1.0, 0.0, 1.0), aim)


def full(outputs: dict[str, Any]) -> Any:
    return losses.Full(outputs["models"]["teacher"], outputs["teacher"].hidden[-1][outputs["real"]])


@pytest.mark.parametrize("chunk", [7, 4096])
def test_cross_entropy_and_divergence_are_their_definitions(
    outputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    mine, aim = log_softmax(outputs["student"].logits), log_softmax(outputs["teacher"].logits)
    ce = [-mine[i, p, outputs["tokens"][i, p + 1]] for i, n in enumerate(LENGTHS) for p in range(n - 1)]
    kl = [np.sum(np.exp(aim[i, p]) * (aim[i, p] - mine[i, p])) for i, n in enumerate(LENGTHS) for p in range(n)]
    hidden = outputs["student"].hidden[-1].requires_grad_()
    loss, *got = losses_of(outputs, hidden, full(outputs), Parts(0.5, 0.0, 2.0))
    assert float(got[0]) == pytest.approx(np.mean(ce), rel=1e-5)
    assert float(got[1]) == pytest.approx(np.mean(kl), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(0.5 * np.mean(ce) + 2 * np.mean(kl), rel=1e-5)
    loss.backward()
    assert (hidden.grad[~outputs["real"]] == 0).all()  # padding teaches nothing
    assert (hidden.grad[outputs["real"]] != 0).any(-1).all()
    alone = losses_of(outputs, outputs["student"].hidden[-1])
    assert (float(alone[1]), float(alone[2])) == (pytest.approx(np.mean(ce), rel=1e-5), 0.0)


@pytest.mark.parametrize("kind", ["none", "full", "top"])
def test_gradients_are_those_of_the_definitions(outputs: dict[str, Any], kind: str) -> None:
    """By torch's own differentiation of the losses written out, in float64."""
    hidden = outputs["student"].hidden[-1].detach().requires_grad_()
    student, (there, targets) = outputs["models"]["student"], asked(outputs)
    aim_logits = outputs["teacher"].logits[there]
    aim = {"none": None, "full": full(outputs), "top": losses.top_of(aim_logits, 5)}[kind]
    loss, _, divergence = losses_of(outputs, hidden, aim, Parts(0.5, 0.0, 2.0))
    (got,) = torch.autograd.grad(loss, hidden)

    own = torch.log_softmax(student.logits(hidden[there]).double(), -1)
    counted = targets >= 0
    expected = -0.5 * own[counted].gather(1, targets[counted][:, None]).mean()
    wanted = torch.log_softmax(aim_logits.double(), -1)
    if kind == "top":
        ids = wanted.topk(5).indices
        rows = [values.gather(1, ids) for values in (own, wanted)]
        own, wanted = (torch.cat([row, torch.log1p(-row.exp().sum(1, keepdim=True))], 1) for row in rows)
    kl = (wanted.exp() * (wanted - own)).sum(-1).mean() * (kind != "none")
    (reference,) = torch.autograd.grad(expected + 2 * kl, hidden)
    assert float(divergence) == pytest.approx(float(kl.detach()), rel=1e-4)
    torch.testing.assert_close(got, reference, rtol=1e-3, atol=1e-7)


def test_chunks_have_the_same_gradients(outputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    student = outputs["models"]["student"]
    for chunk in (5, 4096):
        monkeypatch.setattr(losses, "_CHUNK", chunk)
        student.zero_grad()
        losses_of(outputs, outputs["student"].hidden[-1], full(outputs))[0].backward()
        gradients.append(student.head.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
