"""`gossamer convert`: packs a checkpoint into a folder that loads at once."""

from __future__ import annotations

import argparse
from collections import Counter

from ..formats import TYPES
from .layers import Layer, layer_table, summary, totals
from .options import SOURCE_HELP, add_force_option, add_packing_options, given, nonempty
from .output import print_json
from .progress import progress

SUMMARY = "pack a checkpoint into compressed weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    types = ("auto", "stored", *TYPES)
    parser.add_argument("src", metavar="SRC", type=nonempty, help=SOURCE_HELP)
    parser.add_argument("dst", metavar="DST", type=nonempty, help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--weights", choices=types, default="auto", help="type of the blocks' values; auto is int8 (default auto)"
    )
    add_packing_options(parser, types)
    add_force_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Packs, prints what was written, and returns the exit code."""
    from ..checkpoint import open_checkpoint
    from ..convert import Report, convert, pack_checkpoint
    from ..loading import locate
    from ..packed import PackedModel

    packed: PackedModel | Report
    with progress() as report:
        source = locate(args.src, report)
        options = given(args, "weights", "group", "format", "head")
        if args.dry_run:
            packed = pack_checkpoint(open_checkpoint(source), **options, progress=report)
        else:
            packed = convert(source, args.dst, **options, force=args.force, progress=report)
    layers = [Layer.of_weight(name, weight, packed.reasons[name]) for name, weight in packed.weights.items()]
    if args.json:
        written = None if args.dry_run else args.dst
        print_json({"written": written, "layers": [layer.to_dict() for layer in layers], "totals": totals(layers)})
        return 0
    if args.dry_run:
        print(layer_table(layers))
        print("a dry run: nothing is written")
    else:
        kinds = Counter(f"{layer.format} {layer.type}" for layer in layers)
        print(", ".join(f"{count} {kind}" for kind, count in kinds.items()))
        print(summary(layers))
        print(f"written: {args.dst}")
    return 0
