"""`gossamer eval`: perplexity of a model over a text, how well it does a task, or how good its vectors are."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import GossamerError, naming
from ..folders import check_new_file, write_file
from ..generation.perplexity import CONTEXT, perplexity
from ..text.metrics import FEWER, METRICS
from .embed import add_pooling_options
from .options import (
    MODEL_HELP,
    add_adapter_option,
    add_device_option,
    add_engine_options,
    add_force_option,
    add_revision_option,
    integer,
    nonempty,
    number,
    open_model,
)
from .output import print_json
from .progress import progress

SUMMARY = "measure the perplexity of a model over a text, how well it does a task, or its vectors of texts"

_OPTIONS = {
    "text": ("context", "windows"),
    "task": ("metric", "held_out", "limit", "max_new_tokens", "results"),
    "pairs": ("pool", "truncate", "limit"),
}


def add_metric_option(group: argparse._ActionsContainer) -> None:
    """Adds --metric; None where it is not given."""
    said = "; ".join(f"{name}: {what}" for name, what in METRICS.items())
    group.add_argument("--metric", choices=tuple(METRICS), help=f"what answers are measured by (exact). {said}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL", type=nonempty, help=MODEL_HELP)
    add_revision_option(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", type=nonempty, metavar="FILE", help="UTF-8 text file, or a folder of them")
    what.add_argument(
        "--task", type=nonempty, metavar="FILE.jsonl", help="prompts and completions, or messages; see docs/tasks.md"
    )
    what.add_argument(
        "--pairs",
        type=nonempty,
        metavar="FILE.jsonl",
        help="two texts and how alike they are; see docs/evaluation.md",
    )
    text = parser.add_argument_group("texts")
    text.add_argument(
        "--context",
        type=integer(2),
        metavar="N",
        help=f"tokens a window (default {CONTEXT}, or what the model holds where that is less)",
    )
    text.add_argument("--windows", type=integer(1), metavar="N", help="read only the first N windows (all)")
    task = parser.add_argument_group("tasks")
    add_metric_option(task)
    task.add_argument(
        "--held-out",
        type=number(0, 1, above=True),
        metavar="X",
        help="answer only the share that finetune --held-out X holds out of the file (all of it)",
    )
    task.add_argument("--limit", type=integer(1), metavar="N", help="take only the first N samples, or pairs (all)")
    task.add_argument(
        "--max-new-tokens",
        type=integer(1),
        metavar="N",
        help="most tokens of an answer (those of the longest right one and 16 more)",
    )
    task.add_argument(
        "--results", type=nonempty, metavar="FILE.jsonl", help="write every answer and its score, a line each"
    )
    pairs = parser.add_argument_group("pairs")
    add_pooling_options(pairs, truncate=None)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_force_option(parser, "replace the FILE.jsonl of --results")
    add_adapter_option(parser)
    add_device_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and returns the exit code."""
    kinds: dict[str, Callable[[argparse.Namespace], tuple[dict[str, Any], str]]]
    kinds = {"text": _text, "task": _task, "pairs": _pairs}
    asked = next(name for name in kinds if getattr(args, name) is not None)
    for name in sorted({name for names in _OPTIONS.values() for name in names}):
        if getattr(args, name) is not None and name not in _OPTIONS[asked]:
            others = " or ".join(f"--{kind}" for kind, names in _OPTIONS.items() if name in names)
            args.parser.error(f"argument --{name.replace('_', '-')}: goes with {others}")
    if args.force and not args.results:
        args.parser.error("argument --force: needs --results, which is what it replaces")
    document, said = kinds[asked](args)
    if args.json:
        print_json(document)
    else:
        print(said)
    return 0


def _text(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..text.calibration import read_text

    text = read_text(args.text)
    if not text:
        raise GossamerError(f"{args.text}: the text is empty")
    model = open_model(args, args.model, args.threads)
    with progress() as report:
        result = perplexity(model, text, context=args.context, max_windows=args.windows or 0, progress=report)
    if not math.isfinite(result.ppl):
        raise GossamerError(f"{args.model}: the perplexity is {result.ppl}: its logits are of no use")
    document = {
        "model": args.model,
        "text": args.text,
        "context": result.context,
        "perplexity": result.ppl,
        "tokens": result.tokens,
        "windows": result.windows,
        "seconds": result.seconds,
    }
    said = (
        f"perplexity {result.ppl:.3f} over {result.tokens} tokens in {result.windows} windows of {result.context}, "
        f"{result.seconds:.1f} s"
    )
    return document, said


def _task(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..generation.tasks import evaluate_task
    from ..text.metrics import check_answers
    from ..text.tasks import read_task, split_task

    samples = read_task(args.task) if args.held_out is None else split_task(args.task, args.held_out)[1]
    samples = samples[: args.limit]
    metric = args.metric or "exact"
    check_answers(metric, samples)
    if args.results and os.path.realpath(args.results) == os.path.realpath(args.task):
        raise GossamerError(f"{args.results}: is what is read; name another file")
    if args.results:
        check_new_file(args.results, force=args.force)
    model = open_model(args, args.model, args.threads)
    with progress() as report:
        result = evaluate_task(model, samples, metric=metric, max_new_tokens=args.max_new_tokens, progress=report)
    if args.results:
        lines = (json.dumps(answer.to_dict(), ensure_ascii=False) + "\n" for answer in result.answers)
        with naming(args.results, "cannot write"):
            write_file(Path(args.results), "".join(lines))
    about = f"{len(result.answers)} answers, {result.seconds:.1f} s"
    exact = f"{result.exact:.1%} exact"
    own = f"{metric} {result.value:.1%} ± {result.error:.1%}{' (less is better)' if metric in FEWER else ''}"
    said = f"{own}, {about}" if metric == "exact" else f"{own}, {exact}, {about}"
    return {"model": args.model, "task": args.task, **result.to_dict()}, said


def _pairs(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from ..generation.similarity import evaluate_pairs
    from ..text.similarity import read_pairs

    pairs = read_pairs(args.pairs)[: args.limit]
    model = open_model(args, args.model, args.threads)
    with progress() as report:
        result = evaluate_pairs(model, pairs, pool=args.pool, truncate=bool(args.truncate), progress=report)
    said = f"spearman {result.spearman:.4f} over {result.pairs} pairs, {result.seconds:.1f} s"
    return {"model": args.model, "pairs": args.pairs, **result.to_dict()}, said
