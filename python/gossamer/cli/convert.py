"""`gossamer convert`: packs a checkpoint into a folder that loads at once."""

from __future__ import annotations

import argparse

from .layers import Layer, layer_table, totals
from .options import WEIGHT_TYPES, nonempty
from .output import print_json
from .progress import progress

SUMMARY = "pack a checkpoint into compressed weights"
FORMATS = ("auto", "dense", "bitmap", "csr", "nm")
GROUPS = (0, 32, 64, 128)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("src", metavar="SRC", type=nonempty, help="Hugging Face checkpoint folder or GGUF file")
    parser.add_argument("dst", metavar="DST", type=nonempty, help="folder to write")
    parser.add_argument(
        "--weights", choices=WEIGHT_TYPES, default="auto", help="type of the values (default %(default)s)"
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=GROUPS,
        default=64,
        help="int8, int4: inputs a scale; 0 is a row (default %(default)s)",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="auto", help="format of every matrix (default %(default)s)"
    )
    parser.add_argument(
        "--head", choices=WEIGHT_TYPES, default="auto", help="type of the head's values (default %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Packs, prints what was written, and returns the exit code."""
    from ..checkpoint import open_checkpoint
    from ..convert import convert, pack_checkpoint

    options = {"weights": args.weights, "group": args.group, "format": args.format, "head": args.head}
    with progress() as report:
        if args.dry_run:
            weights = pack_checkpoint(open_checkpoint(args.src), **options, progress=report).weights
        else:
            weights = convert(args.src, args.dst, **options, progress=report).weights
    layers = [Layer.of_weight(name, weight) for name, weight in weights.items()]
    if args.json:
        written = None if args.dry_run else args.dst
        print_json({"written": written, "layers": [layer.to_dict() for layer in layers], "totals": totals(layers)})
    else:
        print(layer_table(layers))
    return 0
