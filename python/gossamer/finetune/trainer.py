"""The training loop: what a step does, when states are saved, and how a stopped run goes on exactly."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GossamerError
from ..nn.decoder import Decoder
from ..nn.linears import parameter_name
from ..progress import Progress
from .batches import Batch, Source
from .losses import squarehead, token_losses
from .masks import Masks
from .options import SOLVED, Options, Parts
from .rounding import Rounding, rounded_types
from .sparsegpt_masks import raise_zeros
from .state import has_state, load_state, save_state
from .teacher import Teacher

_BETAS = (0.9, 0.95)
_CALIBRATION = 8192  # tokens that inputs are measured on, in whole windows
_REFRESH = 16  # optimizer steps that searched scales are held for
_MOMENTS = ("exp_avg", "exp_avg_sq")
_WHOLE = Parts(1.0, 1.0, 1.0)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; the state is saved, and the text says where."""


class Trainer:
    """A run: student, teacher, optimizer, masks, and what has happened so far.

    `values` are the float32 weights that the optimizer moves. Without rounding they are the student's own; with it the
    student holds them rounded.

    Attributes:
        student: What is trained; computes with the weights that will be stored.
        log: A record of every step.
        curve: A record of every validation.
        tokens: Training tokens so far.
        seconds: Time trained so far.
    """

    def __init__(
        self, student: Decoder, teacher: Decoder, data: Source, options: Options, folder: Path, total: int
    ) -> None:
        """Sets up; goes on from the state in `folder` where there is one.

        Args:
            student: On its device, float32.
            teacher: On the same device.
            data: What to train and validate on.
            options: The options.
            folder: Where states are saved.
            total: Tokens to train on; 0 for no limit but time. A run that goes on keeps the limit it was begun with.

        Raises:
            GossamerError: there are no zeros to keep, or the state is not valid.
        """
        self.student, self.data, self.options, self.folder = student, data, options, folder
        self.teacher = Teacher(teacher, options, folder, len(data.train))
        self.log: list[dict[str, float]] = []
        self.curve: list[dict[str, float]] = []
        self.tokens, self.seconds = 0, 0.0
        self._total, self._digest = total, data.digest()
        self._device = student.embed.weight.device
        self._rounding = Rounding(rounded_types(student.config, options.weights, options.head), options.group)
        self._parameters = dict(student.named_parameters())
        self.values: dict[str, Tensor] = dict(self._parameters)
        if self._rounding.types:
            self.values = {name: nn.Parameter(value.detach().clone()) for name, value in self._parameters.items()}
        self.masks = Masks(
            self._pruned(), options.schedule, options.sparsity, options.scores, options.step_tokens,
            options.raised_within,
        )  # fmt: skip
        self._optimizer = torch.optim.AdamW(
            self.values.values(), lr=options.lr, betas=_BETAS, weight_decay=options.weight_decay, fused=True
        )
        for value in self.values.values():
            self._optimizer.state[value] = {
                "step": torch.zeros((), device=self._device),
                **{moment: torch.zeros_like(value, requires_grad=False) for moment in _MOMENTS},
            }
        self._refresh()
        if has_state(folder):
            self._load()
        self._publish()

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self.tokens // self.options.step_tokens

    @property
    def progress(self) -> float:
        """Part of the training that is done, by tokens or by time, whichever is further."""
        by_tokens = self.tokens / self._total if self._total else 0.0
        by_time = self.seconds / (60 * self.options.budget_minutes) if self.options.budget_minutes else 0.0
        return min(max(by_tokens, by_time), 1.0)

    def _expected(self) -> int:
        """Tokens that the training will have taken in the end, at the speed so far."""
        return max(self.tokens, round(self.tokens / self.progress)) if self.progress else self._total

    def train(self, report: Progress) -> None:
        """Trains to the end.

        Args:
            report: Called with (tokens so far, tokens in all, what) after every step; where time is the limit, the
                tokens in all are what they will be at the speed so far.

        Raises:
            GossamerError: a loss or a gradient is not finite, or a state cannot be saved.
            Interrupted: after Ctrl-C or SIGTERM; the state is saved.
        """
        if self.steps:
            report(self.tokens, self._expected(), f"going on after step {self.steps}, tokens")
        if not self.curve:
            self.validate()
        begun, tokens, at = time.monotonic(), self.tokens, self.progress
        saved, last = begun, begun
        with _stop_requested() as stop:
            while self.progress < 1:
                record = self.step()
                now = time.monotonic()
                self.seconds += now - last
                last = now
                self.log.append({**record, "tokens": self.tokens, "seconds": round(self.seconds, 3)})
                speed = (self.tokens - tokens) / (now - begun)
                left = (now - begun) * (1 - self.progress) / max(self.progress - at, 1e-9)
                report(self.tokens, self._expected(), _told(self.steps, record, speed, left))
                if self.progress * (self.options.validations + 1) >= len(self.curve) and self.progress < 1:
                    self.validate()
                    last = time.monotonic()  # looking at other data is no training
                due = self.options.save_steps and self.steps % self.options.save_steps == 0
                if stop() or due or now - saved > 60 * self.options.save_minutes:
                    self.save()
                    saved = last = time.monotonic()
                if stop():
                    raise Interrupted(f"stopped after {self.steps} steps; the same command goes on from {self.folder}")
        self._raise(self.steps)  # where the last step was a long one
        self.save()  # so that a result that cannot be written is not lost
        self.validate()

    def step(self) -> dict[str, float]:
        """Makes one optimizer step; returns its record. Weights are untouched when it raises."""
        number, options = self.steps, self.options
        if not self._raise(number) and number and number % _REFRESH == 0:
            self._refresh()
            self._publish()
        windows = options.batch * options.accumulate
        batch = self.data.batch(number * windows, windows).to(self._device)
        self.student.zero_grad(set_to_none=True)
        sums = dict.fromkeys(("loss", *asdict(options.loss)), 0.0)
        for part in batch.split(options.batch):
            shares = part.shares(batch)
            losses = self._losses(part, shares)
            torch.autograd.backward(losses["loss"])
            for name in sums:
                sums[name] += float(losses[name].detach()) * getattr(shares, name, 1.0)
        gradients = {name: parameter.grad for name, parameter in self._parameters.items() if parameter.grad is not None}
        if self.masks.movement:
            self.masks.observe(self.values, gradients)
        self.masks.apply(gradients)
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), options.clip or math.inf))
        self._check(number, {**sums, "gradient": norm})
        for name, value in self.values.items():
            value.grad = gradients.get(name)
        rate = options.rate(self.progress + (options.step_tokens / 2 / self._total if self._total else 0.0))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.tokens += options.step_tokens
        self._publish()
        return {"step": number + 1, "lr": rate, **sums, "gradient": norm, "real_tokens": int(batch.real.sum())}

    @torch.no_grad()
    def validate(self) -> None:
        """Adds the losses on the validation windows to `curve`; nothing where no document was set aside."""
        sums, count = dict.fromkeys(asdict(self.options.loss), 0.0), 0
        for batch in self.data.validation_batches(self.options.validation_windows, self.options.batch):
            losses = self._losses(batch.to(self._device))
            weight = int(batch.asked.sum())
            count += weight
            for name in sums:
                sums[name] += float(losses[name]) * weight
        if count:
            means = {name: value / count for name, value in sums.items()}
            means["perplexity"] = math.exp(min(means["ce"], 700.0))
            self.curve.append({"step": self.steps, "tokens": self.tokens, "seconds": round(self.seconds, 3), **means})

    def save(self) -> None:
        """Saves the state; see `gossamer.finetune.state.save_state`."""
        progress = {
            "tokens": self.tokens,
            "total": self._total,
            "seconds": self.seconds,
            "data": self._digest,
            "log": self.log,
            "curve": self.curve,
            "masks": {"begin": self.masks.begin, "done": self.masks.done},
        }
        self.teacher.flush()
        save_state(self.folder, self._tensors(), progress)

    def _load(self) -> None:
        progress = load_state(self.folder, self._tensors())
        if progress["data"] != self._digest:
            raise GossamerError(
                f"{self.folder}: the data has changed since the run began; delete the folder to begin anew"
            )
        self.tokens, self.seconds = progress["tokens"], progress["seconds"]
        self._total = progress["total"] or self._total
        self.log, self.curve = progress["log"], progress["curve"]
        self.masks.put_back(**progress["masks"])
        for state in self._optimizer.state.values():
            state["step"].fill_(self.steps)

    def _moments(self, moment: str) -> dict[str, Tensor]:
        return {name: self._optimizer.state[value][moment] for name, value in self.values.items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a state holds, as it lives here."""
        tensors = {f"value.{name}": value for name, value in self.values.items()}
        for moment in _MOMENTS:
            tensors |= {f"{moment}.{name}": values for name, values in self._moments(moment).items()}
        tensors |= {f"keep.{name}": keep for name, keep in self.masks.keep.items()}
        tensors |= {f"movement.{name}": moved for name, moved in self.masks.movement.items()}
        tensors |= {"teacher.known": self.teacher.known} if len(self.teacher.known) else {}
        return tensors | {f"scales.{name}": scales for name, scales in self._rounding.held.items()}

    def _pruned(self) -> dict[str, Tensor]:
        """The matrices that have masks."""
        return {name: self.values[name] for name in map(parameter_name, self.student.config.linears)}

    def _raise(self, number: int) -> bool:
        """Raises the zeros to where the schedule is before a step; returns whether that changed anything."""
        zeros = self.masks.due(number, self.progress)
        if not zeros:
            return False
        if self.options.scores in SOLVED:
            # Those that training comes to next.
            first = number * self.options.batch * self.options.accumulate
            batch = self.data.batch(first, -(-_CALIBRATION // self.options.length)).to(self._device)
            raise_zeros(self.student, batch, zeros, self.values, self.masks.keep, self._autocast, self.options.scores)
        else:
            self.masks.drop(zeros, self.values)
        for tensors in (self.values, *map(self._moments, _MOMENTS)):
            self.masks.apply(tensors)
        self._refresh(anew=True)
        self._publish()
        return True

    def _refresh(self, *, anew: bool = False) -> None:
        self._rounding.refresh(self.values, anew=anew)

    @torch.no_grad()
    def _publish(self) -> None:
        """Lets the student compute with the weights as they will be stored."""
        if self._rounding.types:
            for name, value in self.values.items():
                if name in self._rounding.types:
                    self._rounding.round(name, value, self._parameters[name])
                else:
                    self._parameters[name].copy_(value)

    def _losses(self, batch: Batch, shares: Parts = _WHOLE) -> dict[str, Tensor]:
        """The parts of the loss, and their weighted sum with gradients; parts of weight 0 may be 0.

        Each counts in the sum by the share that a batch has of what a step looks at.
        """
        asked = asdict(self.options.loss)
        weights = Parts(**{name: weight * getattr(shares, name) for name, weight in asked.items()})
        with self._autocast():
            taught, aim = self.teacher.look(batch)
            found = self.student(
                batch.tokens,
                first=batch.first,
                reads=batch.reads,
                heard=batch.heard,
                logits=False,
                recompute_blocks=self.options.recompute,
            )
            distance = torch.zeros(())
            if weights.squarehead:
                distance = squarehead(found.hidden, taught.hidden, batch.real)
                if batch.heard is not None:
                    distance = distance + squarehead(found.encoded, taught.encoded, batch.heard)
            last, targets = found.hidden[-1][batch.asked], batch.targets[batch.asked]
            loss, ce, kl = token_losses(self.student, last, targets, weights, aim)
        return {"loss": loss + weights.squarehead * distance, "ce": ce, "squarehead": distance, "kl": kl}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def _check(self, number: int, values: dict[str, float]) -> None:
        broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            kept = f"the state saved last is in {self.folder}" if has_state(self.folder) else "no state was saved yet"
            raise GossamerError(
                f"step {number + 1}, after {self.tokens} tokens: {', '.join(broken)}; {kept}; a lower lr may help"
            )


def _told(step: int, record: dict[str, float], speed: float, left: float) -> str:
    parts = ", ".join(f"{name} {record[name]:.3f}" for name in asdict(Parts()))
    return f"step {step}: loss {record['loss']:.3f} ({parts}), {speed:.0f} tokens/s, {left / 60:.0f} min left; tokens"


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C or SIGTERM came; a second Ctrl-C interrupts at once.

    Between two steps is the only place where weights, moments and masks belong together.
    """
    asked = False

    def ask(_number: int, _frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
