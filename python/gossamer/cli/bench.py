"""`gossamer bench`: speed of prompts (ppN) and of decoding (tgN), in rows that can be laid beside llama-bench's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import TYPES
from ..generation import cost_measured
from ..generation.describe import weight_kinds
from ..generation.ready import ready
from ..generation.speeds import NEW, PROMPT, measure
from ..generation.weight_streams import told, weight_bytes, weight_bytes_by_stream
from ..gpu.cuda import check_available
from ..loading import check_gpu_activations
from ..pictures import new_figure
from ..tables import table
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
from .speed_picture import draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..generation.model import Model

SUMMARY = "measure prefill and decode speed"


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
        "-d",
        "--depth",
        type=_list(0),
        default=[0],
        metavar="N[,N...]",
        help="tokens of context that are there before (default 0)",
    )
    parser.add_argument(
        "-B",
        "--batch",
        type=_list(1),
        default=[1],
        metavar="N[,N...]",
        help="texts that are decoded together; tokens a second are those of all of them (default 1)",
    )
    parser.add_argument(
        "--threads",
        type=_list(1),
        default=[0],
        metavar="N[,N...]",
        help="thread counts to time (default: as many as pay)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw speeds and bytes into this picture")
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
    figure = new_figure(args.plot, 12.0, 4.0) if args.plot else None
    rows: list[dict[str, Any]] = []
    for model in _models(args, options):
        with progress() as report:
            cost_measured.measure(model, report)
            rows += measure(model, args.prompt, args.new, args.repeats, report, depths=args.depth, batches=args.batch)
    name = args.model or f"synthetic {args.synthetic}"
    if figure:
        draw(figure, rows, name, args.plot)
    whole, streams = weight_bytes(model, model.mix()), weight_bytes_by_stream(model, model.mix())
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
                "weight_bytes": whole,
                "weight_streams": streams,
                "rows": rows,
            }
        )
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in weight_kinds(model).items())
    size = f"{whole / 1e6:.1f} MB{told(streams)} a token"
    print(f"{name}: {kinds}; {size}, {model.decoder.kv} KV\n")
    header = ("test", "threads", "B", "t/s", "± sd", "min", "max", "MB/token", "GB/s", "roof", "%", "predicted t/s")
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


def _cells(row: dict[str, Any]) -> list[str]:
    traffic = ["", "", "", "", ""]
    if row["bytes_per_token"]:
        traffic = [f"{row['bytes_per_token'] / 1e6:.1f}", f"{row['gigabytes_per_second']:.1f}"]
        roof = row["roof_gigabytes_per_second"]
        traffic += [f"{roof:.1f}", f"{row['percent_of_roof']:.0f}"] if roof else ["", ""]
        traffic.append(f"{row['predicted']['tokens_per_second']:.1f}" if row["predicted"] else "")
    speeds = (row["tokens_per_second"], row["stdev"], min(row["runs"]), max(row["runs"]))
    threads = str(row["threads"] or "-")
    return [row["test"], threads, str(row["batch"]), *(f"{speed:.1f}" for speed in speeds), *traffic]


def _list(least: int) -> Callable[[str], list[int]]:
    """Returns a type of options: whole numbers between commas, each once."""
    one = integer(least)

    def numbers(text: str) -> list[int]:
        return list(dict.fromkeys(one(part) for part in text.split(",")))

    return numbers
