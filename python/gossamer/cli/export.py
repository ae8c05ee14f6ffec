"""`gossamer export`: writes a checkpoint as GGUF, for programs that read that."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints.gguf_write import TYPES
from .options import SOURCE_HELP, add_force_option, add_revision_option, nonempty
from .output import print_json
from .progress import progress

SUMMARY = "write a checkpoint as a GGUF file, for other programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("src", metavar="SRC", type=nonempty, help=SOURCE_HELP)
    add_revision_option(parser, "SRC")
    parser.add_argument("dst", metavar="DST.gguf", type=nonempty, help="file to write; must not exist yet")
    parser.add_argument("--type", choices=TYPES, default="f16", help="of the matrices (default %(default)s)")
    add_force_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Writes the file and returns the exit code."""
    from ..checkpoints import open_checkpoint
    from ..checkpoints.gguf_write import write_gguf
    from ..loading import locate

    path = Path(args.dst)
    with progress() as report:
        source = locate(args.src, report, args.revision)
        write_gguf(open_checkpoint(source), path, type=args.type, force=args.force, progress=report)
    size = path.stat().st_size
    if args.json:
        print_json({"written": args.dst, "type": args.type, "bytes": size})
    else:
        print(f"written: {path}, {size / 1e6:.1f} MB")
    return 0
