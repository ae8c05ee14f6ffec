"""What finetuning minimizes: cross entropy, SquareHead, and the divergence from the teacher's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from ..nn.decoder import Decoder
from .options import Parts

EPS = 1e-8
# Tokens whose logits exist at once: 2048 of a vocabulary of 49152 are 400 MB as float32.
_CHUNK = 2048
# Rows whose losses are computed at once on a CPU: 32 of them are 6 MB as float32, of which several exist.
_ROWS = 32
# On a GPU: bytes of a float32 matrix of logits, of which several exist. Making logits again in the backward pass costs
# it a fifth of a step.
_LOGITS_ON_GPU = 2 << 30
_LEAST = 1e-7  # what a student is taken to leave for all but the teacher's likeliest tokens


@dataclass(frozen=True)
class Full:
    """Predictions of a teacher for every token of the vocabulary.

    Attributes:
        teacher: It.
        hidden: Its hidden states after the last block where the loss looks, [n, hidden].
    """

    teacher: Decoder
    hidden: Tensor

    def part(self, rows: slice) -> Predicted:
        """Returns those of some rows."""
        with torch.no_grad():
            return Predicted(logits=self.teacher.logits(self.hidden[rows]))


@dataclass(frozen=True)
class Top:
    """Predictions of a teacher for its likeliest tokens; all others count as one.

    Attributes:
        ids: The tokens, [n, k].
        scores: Their log-probabilities, float32 [n, k].
    """

    ids: Tensor
    scores: Tensor

    def part(self, rows: slice) -> Predicted:
        """Returns those of some rows."""
        return Predicted(top=Top(self.ids[rows], self.scores[rows]))


@dataclass(frozen=True)
class Predicted:
    """What a teacher predicts for some rows: logits [n, vocab], or its likeliest tokens, or nothing."""

    logits: Tensor | None = None
    top: Top | None = None

    def part(self, rows: slice) -> Predicted:
        """Returns those of some rows."""
        if self.top is not None:
            return self.top.part(rows)
        return self if self.logits is None else Predicted(self.logits[rows])


def top_of(logits: Tensor, count: int) -> Top:
    """Returns the likeliest tokens of logits [n, vocab]."""
    values, ids = logits.topk(min(count, logits.shape[-1]), -1)
    return Top(ids, values.float() - torch.logsumexp(logits.float(), -1, keepdim=True))


def squarehead(student: Sequence[Tensor], teacher: Sequence[Tensor], real: Tensor) -> Tensor:
    """SquareHead (Kurtic et al. 2023, section 3): the relative squared error of hidden states, summed over blocks.

    For each block it is mean((s - t)^2) / (mean(t^2) + eps), both means over the features of all real tokens.

    Args:
        student: Hidden states after each block, [batch, length, hidden].
        teacher: Those of the teacher.
        real: False at padding, [batch, length].

    Returns:
        The sum, a float32 scalar.
    """
    total = torch.zeros((), device=real.device)
    for s, t in zip(student, teacher, strict=True):
        wanted = t[real].float()
        error = (s[real].float() - wanted).square().mean()
        total = total + error / (wanted.square().mean() + EPS)
    return total


def token_losses(
    student: Decoder, hidden: Tensor, targets: Tensor, weights: Parts, aim: Full | Top | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of the next token, and the divergence KL(teacher || student) of distillation (Hinton et al. 2015).

    Logits are made for some tokens at a time, and again in the backward pass where there are more.

    Args:
        student: The model whose head is used.
        hidden: Its hidden states after the last block where the loss looks, [n, hidden].
        targets: The token that comes next, [n]; -1 where cross entropy does not count.
        weights: Of both in their sum.
        aim: What the teacher predicts; None leaves the divergence at 0.

    Returns:
        The weighted sum, with gradients, and the two means, without; float32 scalars, in nats.
    """
    counted = int((targets >= 0).sum())
    shares = (weights.ce / max(counted, 1), weights.kl / max(len(hidden), 1) if aim is not None else 0.0)

    def part(states: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        predicted = Predicted() if aim is None else aim.part(rows)
        logits = student.logits(states)
        found: tuple[Tensor, Tensor, Tensor] = _Vocabulary.apply(logits, targets[rows], predicted, shares)  # type: ignore[no-untyped-call]
        return found

    sums = [torch.zeros((), device=hidden.device) for _ in range(3)]
    chunk = max(_CHUNK, _LOGITS_ON_GPU // (4 * student.config.vocab)) if hidden.is_cuda else _CHUNK
    chunked = len(hidden) > chunk and torch.is_grad_enabled()
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        more = recompute(part, hidden[rows], rows, use_reentrant=False) if chunked else part(hidden[rows], rows)
        sums = [one + other for one, other in zip(sums, more, strict=True)]
    return sums[0], sums[1] / max(counted, 1), sums[2] / max(len(hidden), 1)


class _Vocabulary(torch.autograd.Function):
    """Both losses of logits at once: their gradient is had on the way, and no more float32 matrices than it takes."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, predicted: Predicted, shares: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the weighted sum of sums, and both sums."""
        step = _ROWS if logits.device.type == "cpu" else max(len(logits), 1)
        found = torch.empty_like(logits) if logits.requires_grad else None
        ce, kl = (torch.zeros((), device=logits.device) for _ in range(2))
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            more = _rows(
                logits[rows], targets[rows], predicted.part(rows), shares, None if found is None else found[rows]
            )
            ce, kl = ce + more[0], kl + more[1]
        if found is not None:
            ctx.save_for_backward(found)
        ctx.mark_non_differentiable(ce, kl)
        return shares[0] * ce + shares[1] * kl, ce, kl

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Returns the gradient of the weighted sum."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def _rows(
    logits: Tensor, targets: Tensor, predicted: Predicted, shares: tuple[float, float], out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns both sums over some rows; their gradient goes to `out`, where there is one."""
    own, scale = _softmax(logits)
    counts, rows = targets >= 0, targets.clamp(min=0)[:, None]
    ce = ((scale - logits.gather(1, rows)[:, 0].float()) * counts).sum()
    ce_share, kl_share = counts * shares[0], shares[1]
    kl = torch.zeros_like(ce)
    if predicted.logits is not None:
        aim, other = _softmax(predicted.logits)
        kl = ((predicted.logits.float() - logits.float()).mul_(aim).sum(-1) + scale - other).sum()
        if out is not None:
            own.mul_((ce_share + kl_share)[:, None]).sub_(aim, alpha=kl_share)
    elif predicted.top is not None:
        ids, scores = predicted.top.ids, predicted.top.scores
        aim, found = scores.exp(), own.gather(1, ids)
        rest = (1 - aim.sum(-1)).clamp(min=0)
        left = (1 - found.sum(-1)).clamp(min=_LEAST)
        distance = scores - (logits.gather(1, ids).float() - scale[:, None])
        kl = ((aim * distance).sum(-1) + torch.xlogy(rest, rest) - rest * left.log()).sum()
        if out is not None:
            own.mul_((ce_share + kl_share * (1 - rest / left))[:, None])
            own.scatter_(1, ids, found * ce_share[:, None] + kl_share * (found - aim))
    elif out is not None:
        own.mul_(ce_share[:, None])
    if out is not None:
        out.copy_(own.scatter_add_(1, rows, -ce_share[:, None]))
    return ce, kl


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns probabilities [n, vocab], float32, and the logarithm of the sums that they were divided by, [n]."""
    values, places = logits.max(-1)
    found = torch.softmax(logits, -1, dtype=torch.float32)
    return found, values.float() - found.gather(1, places[:, None])[:, 0].log()
