"""A model that drafts for itself: `self` over `off`, of a dense int8 model in Llama 3.2 1B's shape and of a real one.

    python bench/self_drafts.py                                          # synthetic: a share of guesses comes true
    python bench/self_drafts.py --model SmolLM2-135M-Instruct.Q4_1.gguf  # real: what comes true, and what that gives

Random weights guess nothing, so with them logits are changed behind the step, for both sides alike, until the asked
share of guesses comes true; all that takes time is real. Sides take turns, and the ratio counts, the median of the
rounds. Run it on an idle machine; GOSSAMER_ISA forces a lower tier, and --name gives its results a file of their own.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
from batch import NEW, PROMPT, _Endless
from common import write_result
from drafts import PROMPTS
from whole_models import ONE, over, turns

import gossamer
from gossamer import Model
from gossamer.generation.cost_measured import measure
from gossamer.generation.drafts import Drafts
from gossamer.generation.held import Held
from gossamer.generation.sampling_options import GENERATE
from gossamer.generation.scheduled import Task
from gossamer.generation.scheduler import Scheduler
from gossamer.generation.self_drafts import SelfDraft
from gossamer.generation.sequence import Sequence
from gossamer.generation.stats import Stats
from gossamer.zoo import synthetic


class _Agreeing:
    """An engine that says what a draft said, for a share of its tokens, and otherwise something new."""

    def __init__(self, model: Model, share: float) -> None:
        self.engine = model.decoder
        self.share = share
        self.random = np.random.default_rng(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, batch: Any, all_logits: bool = False) -> Any:
        logits = self.engine.step(batch, all_logits=all_logits)
        guesses = np.asarray(batch[0][1])[1:] if all_logits else []
        for row, guess in itertools.zip_longest(logits, guesses):
            said = guess is not None and self.random.random() < self.share
            row[guess if said else self.random.integers(len(row))] = 1e4
        return logits


def token_seconds(model: Model, engine: Any, drafts: Drafts | None, found: dict[str, Any]) -> float:
    """Seconds a token of one text behind its first."""
    tokenizer: Any = _Endless()
    prompt = [(100 + 977 * i) % model.config.vocab for i in range(PROMPT)]
    stats = Stats(PROMPT, 0, sampling=GENERATE.changed({"max_new_tokens": NEW + 1}))
    task = Task(Sequence(prompt, tokenizer, stats, context=model.config.context), Held(engine, model._ids))
    scheduler = Scheduler(engine, 1, drafts)
    scheduler.add(task)
    scheduler.step()
    start = time.perf_counter()
    while not task.done:
        scheduler.step()
    seconds = time.perf_counter() - start
    scheduler.close()
    found.update(drafted=stats.steps.drafted, accepted=stats.steps.accepted)
    return seconds / NEW


def synthetic_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A dense int8 model, for each share of zeros of its draft and each share of guesses that come true."""
    rows = []
    model = synthetic.model(args.shape, weights="int8", sparsity=0.0, head="int8")
    measure(model)
    assert model.cost is not None
    for zeros in args.zeros:
        own = SelfDraft(model, zeros)
        for share in args.accepted:
            engine, counts = _Agreeing(model, share), {}
            drafts = Drafts(model.cost, "self", None, own)
            sides = {
                "off": partial(token_seconds, model, engine, Drafts(model.cost, "off"), {}),
                "self": partial(token_seconds, model, engine, drafts, counts),
            }
            seconds = turns(sides, args.rounds)
            row = {
                "model": args.shape,
                "zeros": zeros,
                "accepted": share,
                "self_over_off": over(seconds["off"], seconds["self"]),
            }
            row |= {
                "draft_over_step": own._over_model,
                "bytes_over_step": own.decoder.weight_bytes / model.decoder.weight_bytes,
            }
            rows.append(row | {"counts": dict(counts), "seconds": seconds})
            print(
                f"{zeros:.0%} zeros, {share:.0%} come true: self {row['self_over_off']:.2f} times off; a guess takes "
                f"{own._over_model:.2f} of a step and reads {row['bytes_over_step']:.2f} of its bytes; "
                f"{counts['accepted']} of {counts['drafted']}",
                flush=True,
            )
        del own
    return rows


def real_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A real model as int8: prose, greedy."""
    model = gossamer.load(args.model, weights="int8")
    measure(model)
    assert model.cost is not None
    rows = []
    for zeros in args.zeros:
        own = SelfDraft(model, zeros)
        for prompt in PROMPTS["prose"]:
            seconds: dict[str, list[float]] = {"ngram": [], "self": []}
            stats = None
            for turn in range(args.rounds + 1):
                for kind, found in seconds.items():
                    drafts = Drafts(model.cost, kind, None, own if kind == "self" else None)
                    model.generate(prompt, max_new_tokens=128, draft=drafts)
                    stats = model.last_stats
                    assert stats is not None
                    if turn:
                        found.append(stats.decode_seconds / max(stats.new_tokens - 1, 1))
            assert stats is not None
            row = {"model": args.model, "zeros": zeros, "prompt": prompt, "chance": own.chances.chance(0)}
            row |= {"self_over_ngram": over(seconds["ngram"], seconds["self"]), "draft_over_step": own._over_model}
            rows.append(row | {"steps": stats.to_dict()["steps"], "seconds": seconds})
            print(
                f"{zeros:.0%} zeros: {own.chances.chance(0):.2f} come true of late, self {row['self_over_ngram']:.2f} "
                f"times n-grams alone; a guess takes {own._over_model:.2f} of a step",
                flush=True,
            )
    print(f"median: {statistics.median(row['self_over_ngram'] for row in rows):.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a real one, as for gossamer.load")
    parser.add_argument("--shape", default=ONE, help="of the synthetic one")
    parser.add_argument("--zeros", nargs="+", type=float, default=[0.5, 0.75], help="of the draft")
    parser.add_argument("--accepted", nargs="+", type=float, default=[0.6, 0.8, 0.9], help="shares of guesses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="self_drafts", help="of the file of results")
    args = parser.parse_args()
    rows = real_rows(args) if args.model else synthetic_rows(args)
    print(write_result(args.name, {"setup": {"rounds": args.rounds}, "rows": rows}))


if __name__ == "__main__":
    main()
