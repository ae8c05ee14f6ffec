"""`gossamer models`: the models that are built in or kept on disk, what they take, and how to be rid of them."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import TYPE_CHECKING

from .output import print_json

if TYPE_CHECKING:
    from ..zoo.cache import Entry

SUMMARY = "list the models that are built in or kept on disk, and remove them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(action=_list)
    actions = parser.add_subparsers(metavar="ACTION", help="without one the models are listed")
    remove = actions.add_parser(
        "remove",
        help="remove models from disk",
        description="Removes what `gossamer models` lists; it is fetched or made again when it is used next.",
    )
    remove.add_argument("names", nargs="+", metavar="NAME", help="as listed")
    # Without a default of its own, which would undo what stands before the word "remove".
    remove.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    remove.set_defaults(action=_remove, parser=remove)


def run(args: argparse.Namespace) -> int:
    """Lists or removes, and returns the exit code."""
    code: int = args.action(args)
    return code


def _list(args: argparse.Namespace) -> int:
    from ..folders import home
    from ..zoo.cache import entries

    found = entries()
    if args.json:
        print_json({"home": str(home()), "models": [_document(entry) for entry in found]})
        return 0
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("name", "kind", "where"):
        table.add_column(header, overflow="fold")  # a name that is cut could not be given to `models remove`
    table.add_column("MB", justify="right")
    for entry in found:
        where = "\n".join(map(str, entry.folders)) or "made on first use"
        table.add_row(entry.name, entry.kind, where, f"{entry.bytes / 1e6:.1f}" if entry.folders else "")
    widest = max(len(str(folder)) for entry in found for folder in (*entry.folders, ""))
    # Off a terminal nothing is cut: who reads a pipe wants whole names.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else widest + 200
    Console(width=width, file=sys.stdout, highlight=False, markup=False).print(table)
    print(f"{sum(entry.bytes for entry in found) / 1e6:.1f} MB in all; gossamer models remove NAME")
    return 0


def _remove(args: argparse.Namespace) -> int:
    from ..zoo.cache import remove

    removed = []
    for name in args.names:
        removed.append(remove(name))
        if not args.json:
            print(f"removed {name}: {removed[-1].bytes / 1e6:.1f} MB")
    if args.json:
        print_json({"removed": [_document(entry) for entry in removed]})
    return 0


def _document(entry: Entry) -> dict[str, object]:
    paths = [str(folder) for folder in entry.folders]
    return {"name": entry.name, "kind": entry.kind, "bytes": entry.bytes, "paths": paths}
