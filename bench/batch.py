"""Many texts at once: tokens a second of all of them together over those of one alone, in one sitting.

    python bench/batch.py                                  # the shapes that are asked for
    python bench/batch.py --models smollm2-135m --texts 8

Sides take turns, and the ratio counts, the median of the rounds. Weights are random, in the shape of real models.
Prompts differ from their first token, and none ends before its last. Run it on an idle machine; GOSSAMER_ISA forces a
lower tier, and --name gives its results a file of their own.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from functools import partial
from typing import Any

from common import write_result
from whole_models import ONE, SMALL, over, turns

from gossamer import Model
from gossamer.generation.held import Held
from gossamer.generation.sampling_options import GENERATE
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import Scheduler
from gossamer.generation.sequence import Sequence
from gossamer.generation.stats import Stats
from gossamer.zoo import synthetic

PROMPT, NEW = 64, 64

# model, options of its weights, what 8 texts are to reach over one: with AMX, without
MODELS: tuple[tuple[str, dict[str, Any], tuple[float, float]], ...] = (
    (SMALL, {"weights": "int8", "head": "int8", "sparsity": 0.75}, (4.0, 2.8)),
    (ONE, {"weights": "int4", "head": "int4", "sparsity": 0.5}, (5.0, 3.3)),
)


class _Endless:
    """A tokenizer without words, whose texts never end by themselves."""

    eos_ids: frozenset[int] = frozenset()

    def stream(self, begins: bool = False) -> _Endless:  # noqa: ARG002 - as the tokenizer has it
        return self

    def push(self, token: int) -> str:  # noqa: ARG002
        return ""

    def flush(self) -> str:
        return ""


def token_seconds(model: Model, texts: int, most: int) -> float:
    """Seconds a token of some texts, from when all have their first token until the first one has its last."""
    tokenizer: Any = _Endless()
    ids = itertools.count()
    scheduler = Scheduler(model.decoder, most)
    for number in range(texts):
        prompt = [(100 + 977 * number + i) % model.config.vocab for i in range(PROMPT)]
        stats = Stats(PROMPT, 0, sampling=GENERATE.changed({"max_new_tokens": NEW + 8}))
        text = Sequence(prompt, tokenizer, stats, context=model.config.context)
        scheduler.add(Task(text, Held(model.decoder, ids)))
    begun: set[int] = set()
    while len(begun) < texts:
        begun |= {id(task) for task, _ in scheduler.step()}
    tokens, start = 0, time.perf_counter()
    for _ in range(NEW):
        tokens += len(scheduler.step())
    seconds = time.perf_counter() - start
    scheduler.close()
    return seconds / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[name for name, *_ in MODELS])
    parser.add_argument("--texts", nargs="+", type=int, default=[1, 4, 8, 16], help="texts at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--name", default="batch", help="of the file of results")
    args = parser.parse_args()
    rows = []
    for name, options, asked in MODELS:
        if args.models and name not in args.models:
            continue
        model = synthetic.model(name, threads=args.threads, **options)
        counts = sorted({1, *args.texts})
        sides = {str(count): partial(token_seconds, model, count, count) for count in counts}
        found = turns(sides, args.rounds)
        for count in counts:
            seconds = found[str(count)]
            row = {"model": name, **options, "texts": count, "times_one": over(found["1"], seconds)}
            row |= {"tokens_per_second": 1 / statistics.median(seconds), "seconds": seconds}
            if count == 8:
                row["asked"] = dict(zip(("amx", "without"), asked, strict=True))
            print(
                f"{name} {options['weights']}: {count} texts, {row['tokens_per_second']:.1f} tokens/s together, "
                f"{row['times_one']:.2f} times one",
                flush=True,
            )
            rows.append(row)
    setup = {"prompt": PROMPT, "new_tokens": NEW, "rounds": args.rounds}
    print(write_result(args.name, {"setup": setup, "rows": rows}))


if __name__ == "__main__":
    main()
