"""What finetuning minimizes: cross entropy, SquareHead, and the divergence from the teacher's predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from ..nn.decoder import Decoder

EPS = 1e-8
# Tokens whose logits exist at once: 2048 of a vocabulary of 49152 are 400 MB as float32.
_CHUNK = 2048
# On a GPU: bytes of a float32 matrix of logits, of which several exist. Making logits again in the backward pass costs
# it a fifth of a step.
_LOGITS_ON_GPU = 2 << 30


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
    student: Decoder,
    hidden: Tensor,
    tokens: Tensor,
    real: Tensor,
    teacher: Decoder | None = None,
    teacher_hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the next token, and the divergence KL(teacher || student) of distillation (Hinton et al. 2015).

    Cross entropy counts where the next token is real too, the divergence at every real token. Logits are made for some
    tokens at a time, and again in the backward pass where there are more.

    Args:
        student: The model whose head is used.
        hidden: Its hidden states after the last block, [batch, length, hidden].
        tokens: [batch, length].
        real: False at padding, [batch, length].
        teacher: The teacher; None leaves the divergence at 0.
        teacher_hidden: Its hidden states after the last block.

    Returns:
        The two means, float32 scalars, in nats.
    """
    targets = torch.full_like(tokens, -1)
    targets[:, :-1] = torch.where(real[:, :-1] & real[:, 1:], tokens[:, 1:], -1)
    states, targets = hidden[real], targets[real]
    wanted = teacher_hidden[real] if teacher is not None and teacher_hidden is not None else None

    def part(states: Tensor, targets: Tensor, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = torch.log_softmax(student.logits(states).float(), -1)
        chosen = scores.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        ce = -(chosen * (targets >= 0)).sum()
        if teacher is None or wanted is None:
            return ce, torch.zeros_like(ce)
        with torch.no_grad():
            aim = torch.log_softmax(teacher.logits(wanted).float(), -1)
        return ce, (aim.exp() * (aim - scores)).sum()

    ce, kl = torch.zeros((), device=tokens.device), torch.zeros((), device=tokens.device)
    chunk = max(_CHUNK, _LOGITS_ON_GPU // (4 * student.config.vocab)) if states.is_cuda else _CHUNK
    chunked = len(states) > chunk and torch.is_grad_enabled()
    for start in range(0, len(states), chunk):
        piece = slice(start, start + chunk)
        arguments = (states[piece], targets[piece], None if wanted is None else wanted[piece])
        more = recompute(part, *arguments, use_reentrant=False) if chunked else part(*arguments)
        ce, kl = ce + more[0], kl + more[1]
    return ce / (targets >= 0).sum().clamp(min=1), kl / max(len(states), 1)
