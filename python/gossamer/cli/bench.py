"""`gossamer bench`: prefill (ppN) and decode (tgN) speed, in rows that can be laid beside llama-bench's."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Mix, Reading
from ..errors import GossamerError
from ..formats import TYPES
from ..generation import cost_measured
from ..generation.describe import weight_kinds
from ..generation.held import any_input, choose
from ..generation.ready import ready
from ..generation.stats import percent_of_roof
from ..gpu.cuda import check_available
from ..loading import check_gpu_activations
from ..tables import table
from ..text.calibration import window_length
from ..zoo import synthetic
from .options import (
    MODEL_HELP,
    add_adapter_option,
    add_device_option,
    add_engine_options,
    add_packing_options,
    add_revision_option,
    add_target_options,
    given,
    integer,
    nonempty,
    open_model,
)
from .output import print_json
from .progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..generation.model import Model
    from .progress import Report

SUMMARY = "measure prefill and decode speed"

PROMPT, NEW = 512, 128
START = 8
"""Tokens that a sequence holds before decoding is timed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("model", metavar="MODEL", type=nonempty, nargs="?", help=MODEL_HELP)
    model.add_argument(
        "--synthetic",
        choices=tuple(synthetic.CONFIGS),
        help="instead of MODEL: random weights in the shape of a real model, made in memory",
    )
    add_revision_option(parser)
    add_adapter_option(parser)
    parser.add_argument(
        "-p",
        "--prompt",
        type=integer(0),
        metavar="N",
        help=f"tokens of prefill; 0 skips it (default {PROMPT}, or what the model holds where that is less)",
    )
    parser.add_argument(
        "-n",
        "--new",
        type=integer(0),
        metavar="N",
        help=f"tokens to decode; 0 skips it (default {NEW}, or what the model holds where that is less)",
    )
    parser.add_argument(
        "-r",
        "--repeats",
        type=integer(1),
        default=5,
        metavar="N",
        help="timed runs, after a first one (default %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=_thread_list,
        default=[0],
        metavar="N[,N...]",
        help="thread counts to time (default: as many as pay)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, with every single run")
    add_engine_options(parser, threads=False)
    add_device_option(parser)
    _add_synthetic_options(parser)


def _add_synthetic_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("synthetic models (--synthetic), whose values are of the type --weights")
    add_target_options(group, synthetic.DEFAULT_SPARSITY)
    add_packing_options(group, ("auto", *TYPES))


_SYNTHETIC = ("sparsity", "pattern", "group", "format", "head")


def run(args: argparse.Namespace) -> int:
    """Times, prints, and returns the exit code."""
    if args.prompt == 0 and args.new == 0:
        args.parser.error("-p and -n are both 0: nothing to time")
    options = given(args, *_SYNTHETIC)
    if args.synthetic and args.revision:
        args.parser.error("argument --revision: not allowed with argument --synthetic")
    if args.synthetic and args.adapter:
        args.parser.error("argument --adapter: not allowed with argument --synthetic")
    if args.device == "cuda" and args.threads != [0]:
        args.parser.error("argument --threads: not allowed with --device cuda")
    if args.model and options:
        args.parser.error(f"--{next(iter(options))} goes with --synthetic, not with MODEL")
    rows: list[dict[str, Any]] = []
    for model in _models(args, options):
        with progress() as report:
            cost_measured.measure(model, report)
            rows += measure(model, args.prompt, args.new, args.repeats, report)
    if args.json:
        from .. import _core

        print_json(
            {
                "model": args.model or args.synthetic,
                "synthetic": model.info.get("synthetic"),
                "isa": _core.isa(),
                "kv": model.decoder.kv,
                "activations": args.activations,
                "weights": weight_kinds(model),
                "adapters": model.adapters.weights,
                "weight_bytes": weight_bytes(model),
                "rows": rows,
            }
        )
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in weight_kinds(model).items())
    name = args.model or f"synthetic {args.synthetic}"
    print(f"{name}: {kinds}; {weight_bytes(model) / 1e6:.1f} MB a token, {model.decoder.kv} KV\n")
    header = ("test", "threads", "tokens/s", "± sd", "min", "max", "MB/token", "GB/s", "% of roof", "predicted")
    print(table(header, [_cells(row) for row in rows]))
    return 0


def _models(args: argparse.Namespace, synthetic_options: dict[str, Any]) -> Iterator[Model]:
    """The model to time, with every number of threads in turn."""
    if args.model:
        for threads in args.threads:
            yield open_model(args, args.model, threads)
        return
    if args.device == "cuda":
        check_available()
        check_gpu_activations(args.activations)
    with progress() as report:
        packed = synthetic.pack(args.synthetic, weights=args.weights or "auto", **synthetic_options, progress=report)
    for threads in args.threads:
        yield ready(packed, device=args.device, threads=threads, kv=args.kv, activations=args.activations)


def _begin(model: Model, mix: Mix) -> None:
    """Begins sequence 0, with an input that it reads where there is an encoder."""
    choose(model.decoder, 0, mix)
    reads = any_input(model.config, START)
    if reads is not None and isinstance(model.decoder, Reading):
        model.decoder.remember([(0, reads)])


def measure(model: Model, prompt: int | None, new: int | None, repeats: int, report: Report) -> list[dict[str, Any]]:
    """Times prefill and decode in turn.

    Args:
        model: The model.
        prompt: Tokens of prefill, fed to an empty sequence in one call; 0 skips it, None takes `PROMPT` or the
            context, where that is shorter.
        new: Tokens to decode one at a time, behind `START` others; 0 skips it, None as above. Nothing is sampled.
        repeats: Timed runs of each; one more comes before them to warm up.
        report: Called with (runs done, runs, what).

    Returns:
        One row a test: medians, spread and every run, in tokens a second; of decoding also what it reads, the share of
        the roof that this is, where `gossamer roofline` ran, and tokens a second as `Model.cost` predicts them.

    Raises:
        GossamerError: the tokens do not fit into the model's context.
    """
    context = model.config.context
    prompt = window_length(prompt, PROMPT, context, "-p")
    if new and new + START > context:
        raise GossamerError(f"-n {new}, behind {START} others, is more than the model's context of {context} tokens")
    if new is None:
        new = window_length(None, NEW, max(context - START, 1), "-n")
    tokens = np.array([(100 + i % 1000) % model.decoder.vocab for i in range(max(prompt, new, START))], np.int32)
    decoder, mix = model.decoder, model.mix()
    where = f"{decoder.threads} threads" if decoder.threads else model.device
    prefills: list[float] = []
    decodes: list[float] = []
    for repeat in range(repeats + 1):
        report(repeat, repeats + 1, f"timing, {where}")
        if prompt:
            _begin(model, mix)
            start = time.perf_counter()
            decoder.step([(0, tokens[:prompt])])
            prefills.append(prompt / (time.perf_counter() - start))
            decoder.free(0)
        if new:
            _begin(model, mix)
            decoder.step([(0, tokens[:START])])
            start = time.perf_counter()
            for i in range(new):
                decoder.step([(0, tokens[i : i + 1])])
            decodes.append(new / (time.perf_counter() - start))
            decoder.free(0)
    rows = []
    if prompt:
        rows.append(_row(f"pp{prompt}", decoder.threads, prefills[1:]))
    if new:
        context = START + new // 2
        size = weight_bytes(model) + sum(decoder.kv_bytes_read(START + i + 1) for i in range(new)) / new
        row = _row(f"tg{new}", decoder.threads, decodes[1:], size)
        predicted = model.cost.predict([1], [context]) if model.cost else None
        row["percent_of_roof"] = percent_of_roof(row["gigabytes_per_second"], size, model.device)
        row["predicted"] = {**predicted._asdict(), "tokens_per_second": 1 / predicted.total} if predicted else None
        rows.append(row)
    return rows


def weight_bytes(model: Model) -> int:
    """Bytes of weights that a token reads, those of its adapters included."""
    mix = model.mix()
    return model.decoder.weight_bytes + (model.adapters.bytes(mix) if mix else 0)


def _row(test: str, threads: int, runs: list[float], bytes_per_token: float | None = None) -> dict[str, Any]:
    median = statistics.median(runs)
    return {
        "test": test,
        "threads": threads,
        "tokens_per_second": median,
        "stdev": statistics.stdev(runs) if len(runs) > 1 else 0.0,
        "runs": runs,
        "bytes_per_token": bytes_per_token,
        "gigabytes_per_second": bytes_per_token * median / 1e9 if bytes_per_token else None,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    traffic = ["", "", "", ""]
    if row["bytes_per_token"]:
        traffic = [f"{row['bytes_per_token'] / 1e6:.1f}", f"{row['gigabytes_per_second']:.1f}"]
        traffic.append("" if row["percent_of_roof"] is None else f"{row['percent_of_roof']:.0f}")
        traffic.append(f"{row['predicted']['tokens_per_second']:.1f}" if row["predicted"] else "")
    speeds = (row["tokens_per_second"], row["stdev"], min(row["runs"]), max(row["runs"]))
    return [row["test"], str(row["threads"] or "-"), *(f"{speed:.1f}" for speed in speeds), *traffic]


def _thread_list(text: str) -> list[int]:
    return [integer(1)(part) for part in text.split(",")]
