"""How fast a model computes prompts and writes: tests by context depth and by texts that are written together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..engine import Mix, Reading
from ..errors import GossamerError
from ..text.calibration import window_length
from .held import choose
from .made_up import any_input, any_tokens
from .stats import roof

if TYPE_CHECKING:
    from ..progress import Progress
    from .model import Model

PROMPT, NEW = 512, 128
START = 8
"""Tokens that a text holds before decoding is timed, where no depth is asked for."""

_CHUNK = 256  # tokens of a step that only fills the context


def measure(
    model: Model,
    prompt: int | None,
    new: int | None,
    repeats: int,
    progress: Progress,
    *,
    depths: Sequence[int] = (0,),
    batches: Sequence[int] = (1,),
) -> list[dict[str, Any]]:
    """Times prompts of one text, and decoding of so many together, at each depth; tests of a depth take turns.

    Args:
        model: The model.
        prompt: Tokens of the prompt, computed in one call; 0 skips it, None takes `PROMPT`, or what the context holds
            where that is less.
        new: Tokens that each text decodes, one at a time; 0 skips it, None as above. Nothing is sampled.
        repeats: Timed runs of each; one more comes before them to warm up.
        progress: Told of runs.
        depths: Tokens of context that are there before; decoding at 0 begins behind `START`.
        batches: Numbers of texts that are decoded in one step.

    Returns:
        One row a test: medians, spread and every run, in tokens a second of all texts together; of decoding also what
        it reads a token, the share of the roof that this is, where `gossamer roofline` ran, and tokens a second as
        `Model.cost` predicts them.

    Raises:
        GossamerError: the tokens do not fit into the model's context.
    """
    rows: list[dict[str, Any]] = []
    for place, depth in enumerate(depths):
        if depth >= model.config.context:
            raise GossamerError(f"-d {depth} leaves no room in the model's context of {model.config.context} tokens")
        pp = _length(prompt, PROMPT, model.config.context, depth, "-p")
        tg = _length(new, NEW, model.config.context, depth or START, "-n")
        tests: list[_Prefill | _Decode] = [_Prefill(model, depth, pp)] if pp else []
        tests += [_Decode(model, depth, batch, tg) for batch in batches if tg]
        where = f"{model.decoder.threads} threads" if model.decoder.threads else model.device
        try:
            for repeat in range(repeats + 1):
                progress(place * (repeats + 1) + repeat, len(depths) * (repeats + 1), f"timing, {where}")
                for test in tests:
                    test.run(timed=repeat > 0)
        finally:
            for sequence in range(max(batches)):
                model.decoder.free(sequence)
        rows += [test.row() for test in tests]
    return rows


def _length(asked: int | None, usual: int, context: int, behind: int, option: str) -> int:
    """Returns tokens of a test behind others, with an error in the option's name where they do not fit."""
    if asked and asked + behind > context:
        others = f", behind {behind} others," if behind else ""
        raise GossamerError(f"{option} {asked}{others} is more than the model's context of {context} tokens")
    return window_length(asked, usual, max(context - behind, 1), option, behind)


class _Test:
    """A test at one depth, and its runs."""

    kind: str

    def __init__(self, model: Model, depth: int, tokens: int) -> None:
        self.model, self.depth, self.tokens = model, depth, tokens
        self.mix: Mix = model.mix()
        self.runs: list[float] = []

    @property
    def name(self) -> str:
        """As llama-bench has it."""
        return f"{self.kind}{self.tokens}{f' @ d{self.depth}' if self.depth else ''}"

    def fill(self, sequence: int, length: int) -> None:
        """Brings a sequence to a length, by cutting it where that goes."""
        engine = self.model.decoder
        if length and engine.shortest(sequence) <= length <= engine.length(sequence):
            engine.rollback(sequence, engine.length(sequence) - length)
            return
        engine.free(sequence)
        choose(engine, sequence, self.mix)
        reads = any_input(self.model.config, START)
        if reads is not None and isinstance(engine, Reading):
            engine.remember([(sequence, reads)])
        for at in range(0, length, _CHUNK):
            engine.step([(sequence, any_tokens(engine.vocab, at, min(_CHUNK, length - at), sequence))])

    def described(self, batch: int, bytes_per_token: float | None = None) -> dict[str, Any]:
        """Returns what rows of both kinds have."""
        median = statistics.median(self.runs)
        return {
            "test": self.name,
            "threads": self.model.decoder.threads,
            "depth": self.depth,
            "batch": batch,
            "tokens_per_second": median,
            "stdev": statistics.stdev(self.runs) if len(self.runs) > 1 else 0.0,
            "runs": self.runs,
            "bytes_per_token": bytes_per_token,
            "gigabytes_per_second": bytes_per_token * median / 1e9 if bytes_per_token else None,
        }


class _Prefill(_Test):
    kind = "pp"

    def run(self, *, timed: bool) -> None:
        """Computes the prompt once."""
        engine = self.model.decoder
        self.fill(0, self.depth)
        tokens = any_tokens(engine.vocab, self.depth, self.tokens)
        start = time.perf_counter()
        engine.step([(0, tokens)])
        seconds = time.perf_counter() - start
        if timed:
            self.runs.append(self.tokens / seconds)

    def row(self) -> dict[str, Any]:
        """Returns the row, with the seconds to the first token that may come behind the prompt."""
        row = self.described(1)
        return row | {"first_token_seconds": self.tokens / row["tokens_per_second"]}


class _Decode(_Test):
    kind = "tg"

    def __init__(self, model: Model, depth: int, batch: int, tokens: int) -> None:
        super().__init__(model, depth, tokens)
        self.batch, self.behind = batch, depth or START

    def run(self, *, timed: bool) -> None:
        """Decodes once."""
        engine = self.model.decoder
        for sequence in range(self.batch):
            self.fill(sequence, self.behind)
        steps = [
            [(sequence, any_tokens(engine.vocab, self.behind + at, 1, sequence)) for sequence in range(self.batch)]
            for at in range(self.tokens)
        ]
        start = time.perf_counter()
        for step in steps:
            engine.step(step)
        seconds = time.perf_counter() - start
        if timed:
            self.runs.append(self.tokens * self.batch / seconds)

    def row(self) -> dict[str, Any]:
        """Returns the row, with what a token reads by parts, the share of the roof, and what was predicted."""
        model, batch = self.model, self.batch
        parts = {part: size / batch for part, size in weight_bytes_by_part(model, batch).items()}
        contexts = range(self.behind + 1, self.behind + self.tokens + 1)
        parts["KV"] = sum(map(model.decoder.kv_bytes_read, contexts)) / self.tokens
        row = self.described(batch, sum(parts.values()))
        size = row["bytes_per_token"] * batch
        most = roof(size, model.device)
        predicted = model.cost and model.cost.predict([1] * batch, [self.behind + self.tokens // 2] * batch)
        return row | {
            "bytes_by_part": parts,
            "roof_gigabytes_per_second": most,
            "percent_of_roof": 100 * row["gigabytes_per_second"] / most if most else None,
            "predicted": {**predicted._asdict(), "tokens_per_second": batch / predicted.total} if predicted else None,
        }


def weight_bytes_by_part(model: Model, tokens: int = 1) -> dict[str, float]:
    """Returns the bytes of weights that a step of so many tokens of different texts reads.

    Args:
        model: The model.
        tokens: How many; each chooses its experts, and as many are read as differ when all are chosen equally often.

    Returns:
        By mixers as the description names them, "others" (mostly the head), and "adapters"; no part is empty.
    """
    config, once = model.config, 0.0
    read: dict[str, float] = {}
    for layer, block in enumerate(config.stack):
        for branch in block.branches:
            mixer = branch.mixer
            for name, linear in (mixer.exact(config.hidden) | mixer.linears(config.hidden)).items():
                if (weight := model.weights.get(f"layers.{layer}.{name}")) is not None:
                    share = 1 - (1 - linear.share) ** tokens
                    read[mixer.name] = read.get(mixer.name, 0.0) + share * weight.nbytes
                    once += linear.share * weight.nbytes
    read["others"] = model.decoder.weight_bytes - once
    mix = model.mix()
    read["adapters"] = float(model.adapters.bytes(mix)) if mix else 0.0
    return {part: size for part, size in read.items() if size >= 1}
