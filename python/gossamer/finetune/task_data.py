"""Samples of a task to train on: short ones share windows, each sees itself alone, and completions alone count."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import GossamerError
from ..progress import Progress
from ..text.tasks import TaskSample, encode_sample, split_task
from ..text.tokenizer import Tokenizer
from .batches import Batch, Tokens

_OPEN = 16  # windows that wait for a sample that fits


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's samples lie.

    Attributes:
        path: The task file.
        held_out: A file of samples held out, or the share of `path` that is.
    """

    path: Path
    held_out: Path | float

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.path, *([self.held_out] if isinstance(self.held_out, Path) else [])]

    def split(self) -> tuple[list[TaskSample], list[TaskSample]]:
        """Returns the samples to train on, and those held out; see `split_task`."""
        return split_task(self.path, self.held_out)


@dataclass(frozen=True)
class Side:
    """Samples one behind the other.

    Attributes:
        tokens: Of all.
        starts: Where each begins, and where the last ends, [samples + 1].
        begins: Where the completion of each begins, [samples].
    """

    tokens: Tokens
    starts: NDArray[np.int64]
    begins: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample."""
        return np.diff(self.starts)


class Passes:
    """Which samples windows hold that pass over them again and again, in another order each time."""

    def __init__(self, lengths: NDArray[np.int64], length: int, seed: int) -> None:
        """Takes the tokens of each sample and of a window, and the seed of the order."""
        self._lengths, self._length, self._seed = lengths, length, seed
        self._ends: list[int] = []  # windows up to the end of each pass
        self._plans: dict[int, list[list[int]]] = {}

    def windows(self, first: int, count: int) -> list[list[int]]:
        """Returns the samples of windows `first` ... of the endless order."""
        chosen = []
        for number in range(first, first + count):
            while not self._ends or self._ends[-1] <= number:
                before = self._ends[-1] if self._ends else 0
                self._ends.append(before + len(self.plan(len(self._ends))))
            passed = next(p for p, end in enumerate(self._ends) if number < end)
            chosen.append(self.plan(passed)[number - (self._ends[passed - 1] if passed else 0)])
        return chosen

    def plan(self, passed: int) -> list[list[int]]:
        """Returns the samples of the windows of a pass."""
        if passed not in self._plans:
            while len(self._plans) > 1:
                del self._plans[next(iter(self._plans))]
            order = np.random.default_rng([self._seed, passed]).permutation(len(self._lengths))
            self._plans[passed] = pack(self._lengths, order, self._length)
        return self._plans[passed]


@dataclass(frozen=True)
class TaskData:
    """Windows of samples; see `Source`.

    Attributes:
        samples: To train on.
        held_out: To validate on.
        length: Tokens a window.
        seed: Of the order, which is another one for every pass.
    """

    samples: Side
    held_out: Side
    length: int
    seed: int
    _passes: Passes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Sets up the order."""
        object.__setattr__(self, "_passes", Passes(self.samples.lengths, self.length, self.seed))

    @property
    def train(self) -> Tokens:
        """See `Source`."""
        return self.samples.tokens

    @property
    def windows(self) -> int:
        """See `Source`; the first pass is counted, and others may need one more or less."""
        return len(self._passes.plan(0))

    def batch(self, first: int, count: int) -> Batch:
        """See `Source`."""
        return _batch(self.samples, self._passes.windows(first, count), self.length, again=True)

    def validation_batches(self, most: int, size: int) -> Iterator[Batch]:
        """See `Source`."""
        for part in validation_plan(self.held_out.lengths, self.length, most, size):
            yield _batch(self.held_out, part, self.length, again=False)

    def digest(self) -> int:
        """See `Source`."""
        digest = 0
        for side in (self.samples, self.held_out):
            for part in (side.tokens, side.starts, side.begins):
                digest = zlib.crc32(part.tobytes(), digest)
        return digest


def pack(lengths: NDArray[np.int64], order: Sequence[int] | NDArray[np.int64], length: int) -> list[list[int]]:
    """Puts samples into windows: each into the first of a few open ones that has room.

    Args:
        lengths: Tokens of each sample, at most `length`.
        order: Numbers of samples, as they come.
        length: Tokens of a window.

    Returns:
        The numbers of the samples of each window.
    """
    done: list[list[int]] = []
    held: list[tuple[int, list[int]]] = []  # room, samples
    for number in map(int, order):
        needed = int(lengths[number])
        place = next((place for place, (room, _) in enumerate(held) if room >= needed), None)
        if place is not None:
            room, inside = held[place]
            held[place] = (room - needed, [*inside, number])
            continue
        if len(held) == _OPEN:
            fullest = min(range(_OPEN), key=lambda place: held[place][0])
            done.append(held.pop(fullest)[1])
        held.append((length - needed, [number]))
    return done + [inside for _, inside in held]


def validation_plan(lengths: NDArray[np.int64], length: int, most: int, size: int) -> Iterator[list[list[int]]]:
    """Gives the samples of up to `most` windows to validate on, `size` windows at a time; always the same ones.

    Args:
        lengths: Tokens of each sample, at most `length`.
        length: Tokens of a window.
        most: Windows at most.
        size: Windows at a time.
    """
    plan = pack(lengths, np.random.default_rng(0).permutation(len(lengths)), length)[:most]
    for start in range(0, len(plan), size):
        yield plan[start : start + size]


def _batch(side: Side, plan: list[list[int]], length: int, *, again: bool) -> Batch:
    shape = (len(plan), length)
    tokens, targets, places = np.zeros(shape, np.int64), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    first = np.zeros(shape, np.int64)
    for row, inside in enumerate(plan):
        at = 0
        for number in inside:
            start, end, begin = side.starts[number], side.starts[number + 1], side.begins[number]
            behind = at + int(end - start)
            tokens[row, at:behind], first[row, at:behind] = side.tokens[start:end], at
            places[row, at:behind] = np.arange(start, end)
            # The last token of the prompt predicts the first one of the completion.
            targets[row, at + int(begin - start) - 1 : behind - 1] = side.tokens[begin:end]
            at = behind
        first[row, at:] = at
    real = places >= 0
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(real),
        torch.from_numpy(targets >= 0),
        torch.from_numpy(targets),
        torch.from_numpy(places if again else np.full(shape, -1, np.int64)),
        torch.from_numpy(first),
    )


def prepare_task(
    files: TaskFiles,
    tokenizer: Tokenizer,
    *,
    length: int,
    context: int,
    default: int,
    seed: int,
    progress: Progress | None = None,
) -> TaskData:
    """Reads a task's samples as tokens.

    Args:
        files: Where they lie.
        tokenizer: Gives the tokens.
        length: Tokens a window; 0 takes `default`, or more where a sample is longer.
        context: Tokens that the models hold.
        default: As said.
        seed: Of the order.
        progress: Called with (samples done, samples, what).

    Raises:
        GossamerError: a file is not usable, or a sample is longer than the context or a window; the line names file and
            line.
    """
    sides = files.split()
    total, done = sum(map(len, sides)), 0
    most, what = (length, "a window") if 0 < length < context else (context, "the model's context")
    found = []
    for side in sides:
        parts: list[list[int]] = []
        starts, begins = [0], []
        for sample in side:
            prompt, completion = encode_sample(sample, tokenizer)
            size = len(prompt) + len(completion)
            if not prompt:
                raise GossamerError(f"{sample.where}: the prompt has no tokens")
            if size > most:
                raise GossamerError(f"{sample.where}: the sample has {size} tokens, and {what} holds {most}")
            begins.append(starts[-1] + len(prompt))
            starts.append(starts[-1] + size)
            parts += [prompt, completion]
            done += 1
            if progress is not None and done % 1000 == 0:
                progress(done, total, "reading the task")
        tokens = np.array([token for part in parts for token in part], np.int32)
        found.append(Side(tokens, np.array(starts, np.int64), np.array(begins, np.int64)))
    longest = max(int(side.lengths.max()) for side in found)
    return TaskData(found[0], found[1], length or max(min(default, context), longest), seed)
