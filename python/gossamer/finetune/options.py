"""What can be chosen about a finetuning run, checked."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import GossamerError
from ..formats import STORED, check_group
from ..kinds import check_kinds
from ..machine.threads import check_threads

LENGTH = 256
_GROUP = 64
SCHEDULES = ("fixed", "cubic", "dense")
SOLVED = ("sparsegpt", "admm")
# Raising ends after this part of the training, so that the rest can heal what the last zeros broke: early where values
# are solved for along with the mask.
RAISING, RAISING_SOLVED = 0.7, 0.3
SCORES = ("magnitude", "movement", *SOLVED)
LR_SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("bf16", "f32")
WEIGHTS = (STORED, "int8", "int4")
HEADS = ("auto", "int8", "int4")

# What may change when a run goes on after a stop; a lower learning rate may be just what it needs.
_FREE = ("budget_minutes", "lr", "clip", "save_minutes", "save_steps", "device", "threads")


@dataclass(frozen=True)
class Parts:
    """Weights of the parts of the loss, or their values.

    Attributes:
        ce: Cross entropy of the next token.
        squarehead: Distance of the hidden states from the teacher's.
        kl: Divergence of the predictions from the teacher's.
    """

    ce: float = 1.0
    squarehead: float = 1.0
    kl: float = 0.0

    @property
    def predictions_alone(self) -> bool:
        """Whether a teacher is asked for predictions and no states: they can be kept for later passes."""
        return bool(self.kl and not self.squarehead)


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        loss: Weights of the parts of the loss.
        length: Tokens a window; 0 is 256, or the models' context where that is shorter.
        batch: Windows in one forward pass.
        accumulate: Forward passes in one optimizer step.
        tokens: Tokens to train on; 0 is one pass over the data, or no limit where there is a time budget.
        budget_minutes: Time to train, parts of the run before a stop included; 0 is no limit. The learning rate
            follows whichever of the two limits is nearer.
        lr: Largest learning rate.
        lr_schedule: How it falls to zero after the warm-up: one of `LR_SCHEDULES`.
        warmup: Part of the training in which it rises.
        weight_decay: Of AdamW (Loshchilov & Hutter 2019).
        clip: Largest norm of the gradient; 0 does not clip.
        weights: "int8" or "int4" trains with values rounded as `convert` will, "stored" does not round.
        group: Inputs that share a scale of rounded values.
        head: What values of embedding and head are rounded to, where any are: "int8", "int4", or "auto", which is int8.
        schedule: "fixed" keeps the zeros that are there, "cubic" raises them to `sparsity`, "dense" holds none.
        sparsity: Fraction of zeros of each matrix in the end; for "cubic".
        scores: What "cubic" drops by: one of `SCORES`.
        raising: Part of the training in which "cubic" raises zeros; 0 is 0.3 where `scores` solve for values along with
            masks, and 0.7 otherwise.
        top: The teacher's likeliest tokens that its divergence is taken over, all others being one: computed once and
            kept. 0 takes all, computed at every step.
        precision: "bf16" multiplies in bfloat16, with float32 weights and sums; "f32" does not.
        recompute: Compute blocks again in the backward pass instead of keeping what is inside them.
        validation: Fraction of the documents set aside.
        validation_windows: Windows of them that are looked at.
        validations: How often, evenly over the run, beside before and after it.
        save_minutes: Most minutes between two saved states.
        save_steps: Most optimizer steps between two; 0 is no limit.
        seed: Of the order of the data and of the documents set aside.
        device: "cpu", "cuda", or "auto".
        threads: Threads on the CPU; 0 leaves torch's choice.
    """

    loss: Parts = field(default_factory=Parts)
    length: int = 0
    batch: int = 4
    accumulate: int = 1
    tokens: int = 0
    budget_minutes: float = 0.0
    lr: float = 2e-4
    lr_schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    weights: str = STORED
    group: int = _GROUP
    head: str = HEADS[0]
    schedule: str = "fixed"
    sparsity: float = 0.0
    scores: str = "magnitude"
    raising: float = 0.0
    top: int = 0
    precision: str = "bf16"
    recompute: bool = False
    validation: float = 0.05
    validation_windows: int = 16
    validations: int = 8
    save_minutes: float = 5.0
    save_steps: int = 0
    seed: int = 0
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        """Raises `GossamerError` naming the first option that is out of range."""
        check_kinds(self)
        if not isinstance(self.loss, Parts):
            raise GossamerError(f"loss must be Parts, got {self.loss!r:.80}")
        check_kinds(self.loss)
        for name, allowed in (
            ("lr_schedule", LR_SCHEDULES),
            ("weights", WEIGHTS),
            ("head", HEADS),
            ("schedule", SCHEDULES),
            ("scores", SCORES),
            ("precision", PRECISIONS),
            ("device", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, name) not in allowed:
                raise GossamerError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_group(self.group)
        for name, least in (("batch", 1), ("accumulate", 1), ("tokens", 0), ("validation_windows", 1)):
            if getattr(self, name) < least:
                raise GossamerError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.length != 0 and self.length < 2:
            raise GossamerError(f"length must be at least 2, got {self.length}")
        if self.top != 0 and self.top < 2:
            raise GossamerError(f"top must be 0 or at least 2, got {self.top}")
        check_threads(self.threads)
        for name in ("validations", "save_steps", "seed"):
            if getattr(self, name) < 0:
                raise GossamerError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("budget_minutes", "weight_decay", "clip", "lr", "save_minutes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "lr" and value == 0):
                raise GossamerError(
                    f"{name} must be a finite number {'above' if name == 'lr' else 'from'} 0, got {value}"
                )
        for name in ("warmup", "validation", "sparsity", "raising"):
            if not 0 <= getattr(self, name) < 1:
                raise GossamerError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        parts = asdict(self.loss)
        if not all(math.isfinite(value) and value >= 0 for value in parts.values()) or not any(parts.values()):
            raise GossamerError(f"the parts of the loss must have weights from 0, and one above it, got {parts}")
        if (self.schedule == "cubic") != (self.sparsity > 0):
            raise GossamerError("a sparsity goes with the schedule cubic, and cubic needs one")
        if self.scores != SCORES[0] and self.schedule != "cubic":
            raise GossamerError(f"scores {self.scores} go with the schedule cubic: {self.schedule} drops nothing")
        if self.raising and self.schedule != "cubic":
            raise GossamerError(f"raising {self.raising:g} goes with the schedule cubic: {self.schedule} has none")
        if self.group != _GROUP and self.weights == STORED:
            raise GossamerError(f"group {self.group} goes with weights int8 or int4, and they are stored as they are")
        if self.head != HEADS[0] and self.weights == STORED:
            raise GossamerError(f"head {self.head} goes with weights int8 or int4, and they are stored as they are")
        if self.top and not self.loss.kl:
            raise GossamerError(f"top {self.top} goes with a divergence in the loss (kl), which has no weight")

    @property
    def step_tokens(self) -> int:
        """Tokens in one optimizer step."""
        return self.length * self.batch * self.accumulate

    @property
    def raised_within(self) -> float:
        """Part of the training in which zeros are raised."""
        return self.raising or (RAISING_SOLVED if self.scores in SOLVED else RAISING)

    def pinned(self) -> dict[str, Any]:
        """Returns what must stay the same when a run goes on after a stop."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}

    def rate(self, progress: float) -> float:
        """Returns the learning rate when a part of the training, 0 ... 1, is done."""
        if progress < self.warmup:
            return self.lr * max(progress / self.warmup, 0.01)
        rest = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        if self.lr_schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * rest)) / 2
        return self.lr * (1 - rest) if self.lr_schedule == "linear" else self.lr
