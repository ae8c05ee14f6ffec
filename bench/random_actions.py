"""Random joins, leaves, cancels, forks and rollbacks on one engine, against one text at a time; and long texts.

    python bench/random_actions.py --count 1000                # of each setup of tests/support/actions.py
    python bench/random_actions.py --model MODEL               # 20 prompts x 256 tokens, alone and together, instead

A build with sanitizers (CONTRIBUTING.md) sees more: the module tells it, and their runtimes are loaded first. Actions
run on one engine after another; each has another seed, ends with all texts finished and all pages given back, and is
compared token by token and, for sequences that are stepped by themselves, bit by bit. The first difference ends it.
What was done stands in bench/results/random_actions.json, by ISA.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, write_result
from fuzz import sanitizers

EACH = 200
"""Actions on an engine."""

TEXTS, TOKENS = 20, 256


def act(setup: str, count: int, seed: int) -> dict[str, int]:
    """Does actions of one setup; returns how many of each kind."""
    counts: Counter[str] = Counter()
    engines = done = 0
    while done < count:
        counts += _one_engine(setup, seed + engines)
        engines, done = engines + 1, counts["actions"]
    return {"engines": engines, **counts}


def _one_engine(setup: str, seed: int) -> Counter[str]:
    from actions import SETUPS, Actions

    actions = Actions(SETUPS[setup], seed)
    try:
        while actions.total < EACH:
            actions.turn()
        actions.finish()
    except BaseException:
        print(f"{setup}, seed {seed}, after {actions.total} actions", file=sys.stderr)
        raise
    return actions.counts + Counter({"actions": actions.total})


def company(name: str, threads: int) -> dict[str, Any]:
    """Writes texts one at a time and together; returns how many are the same."""
    import gossamer
    from gossamer.generation.batch import Request, answers

    model = gossamer.load(name, threads=threads)
    asked = [f"{i}. {what} of {thing}:" for i, (what, thing) in enumerate(_subjects())]
    options = gossamer.SamplingOptions(temperature=0.0, max_new_tokens=TOKENS)
    requests = [Request(prompt, options, chat=False) for prompt in asked]
    alone = [next(iter(answers(model, [request], most=1))).completion for request in requests]
    together = [answer.completion for answer in answers(model, requests)]
    same = sum(a is not None and b is not None and a.tokens == b.tokens for a, b in zip(alone, together, strict=True))
    tokens = sum(len(one.tokens) for one in alone if one is not None)
    return {"model": name, "texts": len(asked), "tokens": tokens, "same": same}


def _subjects() -> list[tuple[str, str]]:
    whats = ("A short history", "The uses", "A poem in praise", "Three kinds")
    return [(what, thing) for thing in ("bread", "rivers", "glass", "bees", "maps") for what in whats][:TEXTS]


def under_sanitizers() -> bool:
    """Whether the native module has some; starts anew with their runtimes where they are not loaded."""
    spec = importlib.util.find_spec("gossamer._core")
    assert spec is not None
    assert spec.origin is not None
    checked = sanitizers(Path(spec.origin).read_bytes())
    if checked and os.environ.get("LD_PRELOAD") != checked["LD_PRELOAD"]:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **checked})
    return bool(checked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="actions of each setup, at least")
    parser.add_argument("--seed", type=int, default=1, help="of the first engine")
    parser.add_argument("--setups", nargs="*", help="default: all")
    parser.add_argument("--model", help="writes texts with this model instead")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    checked = under_sanitizers()
    from gossamer import _core

    old = RESULTS / "random_actions.json"
    tiers = json.loads(old.read_text(encoding="utf-8"))["tiers"] if old.is_file() else {}
    result = tiers.setdefault(_core.isa(), {})
    build = {"sanitizers": checked}
    start = time.monotonic()
    if args.model:
        result["texts"] = {**build, **company(args.model, args.threads)}
        print(json.dumps(result["texts"]))
    else:
        sys.path.insert(0, str(ROOT / "tests" / "support"))
        from actions import SETUPS

        setups = result.setdefault("setups", {})
        for setup in args.setups or SETUPS:
            setups[setup] = {**build, "seed": args.seed, **act(setup, args.count, args.seed)}
            print(f"{setup}: {setups[setup]}, {time.monotonic() - start:.0f} s", flush=True)
    print(write_result("random_actions", {"tiers": tiers}))
    if args.model and result["texts"]["same"] < result["texts"]["texts"]:
        raise SystemExit("texts differ")


if __name__ == "__main__":
    main()
