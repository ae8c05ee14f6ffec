"""`gossamer convert`: packs a checkpoint into a folder that loads at once."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats import TYPES
from ..packing.planner import NOTHING_FASTER
from ..tables import table
from .layers import Layer, layer_table, summary, totals, within
from .options import (
    SOURCE_HELP,
    add_force_option,
    add_packing_options,
    add_revision_option,
    check_group,
    given,
    nonempty,
    number,
)
from .output import print_json
from .progress import progress

if TYPE_CHECKING:
    from ..arch.spec import Transformer
    from ..generation.lightest import Candidate
    from ..packing.folder import Entry
    from ..progress import Progress

SUMMARY = "pack a checkpoint into compressed weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    types = ("auto", "stored", *TYPES)
    parser.add_argument("src", metavar="SRC", type=nonempty, help=f"{SOURCE_HELP}; with --replan a packed folder")
    add_revision_option(parser, "SRC")
    parser.add_argument("dst", metavar="DST", type=nonempty, help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--weights",
        choices=types,
        default="auto",
        help="type of the blocks' values; auto is int8, or with --text the lightest that stays near (default auto)",
    )
    add_packing_options(parser, types)
    parser.add_argument(
        "--text",
        type=nonempty,
        metavar="FILE",
        help="have --weights auto and --head auto weigh bytes against divergence on this text",
    )
    parser.add_argument(
        "--divergence",
        type=number(0, above=True),
        metavar="X",
        help="how far predictions on --text may move, KL in nats a token (default 0.02)",
    )
    parser.add_argument(
        "--replan",
        action="store_true",
        help="SRC is packed: choose its formats anew for this machine; no value changes",
    )
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="choose formats by what is known of such processors, without the few seconds of measuring this one",
    )
    add_force_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Packs, prints what was written, and returns the exit code."""
    _check(args)
    if args.no_measure:
        os.environ["GOSSAMER_MEASURE"] = "0"
    with progress() as report:
        entries, config, tried = _packed(args, report)
    layers = within([Layer.of(name, entry) for name, entry in entries.items()], config)
    if args.json:
        written = None if args.dry_run else args.dst
        document = {"written": written, "layers": [layer.to_dict() for layer in layers], "totals": totals(layers)}
        print_json(document | ({"tried": [vars(one) for one in tried]} if tried else {}))
        return 0
    if tried:
        print(_weighed(tried))
    if args.dry_run:
        print(layer_table(layers))
        print("a dry run: nothing is written")
    else:
        kinds = Counter(f"{layer.format} {layer.type}" for layer in layers)
        print(", ".join(f"{count} {kind}" for kind, count in kinds.items()))
        print(summary(layers))
        slow = [layer for layer in layers if NOTHING_FASTER in (layer.why or "")]
        if slow:
            types = ", ".join(sorted({layer.type for layer in slow}))
            print(
                f"{len(slow)} matrices with zeros are stored dense: sparse ones are no faster here than dense ({types})"
            )
        print(f"written: {args.dst}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.replan:
        fixed = [name for name in ("group", "format", "head", "text") if getattr(args, name) is not None]
        if args.weights != "auto":
            fixed.insert(0, "weights")
        if fixed:
            args.parser.error(f"--{fixed[0]} does not go with --replan, which chooses formats and keeps every value")
    if args.divergence is not None and args.text is None:
        args.parser.error("--divergence needs --text, on which it is measured")
    head = args.weights if args.head in (None, "auto") else args.head
    check_group(args, args.weights, head)
    if args.text is not None and args.weights != "auto" and args.head not in (None, "auto"):
        args.parser.error("--text is for --weights auto or --head auto; both types are given")


def _packed(args: argparse.Namespace, report: Progress) -> tuple[dict[str, Entry], Transformer, list[Candidate]]:
    """Packs and writes; returns what the folder says of its matrices and of the model, and which types were tried."""
    from ..checkpoints import open_checkpoint
    from ..folders import check_destination
    from ..generation.lightest import DIVERGENCE, lightest
    from ..loading import locate
    from ..packing.convert import Packing, write_packing
    from ..packing.folder import Entry, write_packed
    from ..packing.replan import replanned
    from ..text.calibration import read_text

    source = locate(args.src, report, args.revision)
    reads = () if args.replan else (source,)
    if not args.dry_run:
        check_destination(Path(args.dst), force=args.force, reads=reads)
    if not args.replan and args.text is None:
        packing = Packing(open_checkpoint(source), **given(args, "weights", "group", "format", "head"), progress=report)
        if args.dry_run:
            return {name: made[1] for name, made in packing if isinstance(made, tuple)}, packing.config, []
        return write_packing(args.dst, packing, force=args.force, reads=reads), packing.config, []
    tried: list[Candidate] = []
    if args.replan:
        packed = replanned(source, report)
    else:
        text, bound = read_text(args.text), DIVERGENCE if args.divergence is None else args.divergence
        options = given(args, "weights", "head", "group", "format")
        packed, tried = lightest(open_checkpoint(source), text, bound=bound, progress=report, **options)
    if not args.dry_run:
        write_packed(args.dst, packed, force=args.force, reads=reads)
    entries = {name: Entry.of(weight, packed.reasons[name]) for name, weight in packed.weights.items()}
    return entries, packed.config, tried


def _weighed(tried: list[Candidate]) -> str:
    rows = [(one.weights, one.head, f"{one.bytes / 1e6:.1f}", f"{one.divergence:.4f}") for one in tried]
    return table(("weights", "head", "MB/token", "divergence"), rows) + "\nthe last one is taken\n"
