"""The command `gossamer`: one module a command; this one parses the line and turns every outcome into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ..errors import GossamerError, one_line
from . import (
    batch,
    bench,
    chat,
    convert,
    embed,
    evaluate,
    export,
    finetune,
    generate,
    inspect,
    models,
    prune,
    roofline,
    sample,
    serve,
    transcribe,
    translate,
)
from .interrupt import INTERRUPTED
from .parser import SHELLS, Completion, Parser, Version

COMMANDS: dict[str, ModuleType] = {
    "generate": generate,
    "chat": chat,
    "batch": batch,
    "serve": serve,
    "embed": embed,
    "translate": translate,
    "convert": convert,
    "prune": prune,
    "finetune": finetune,
    "sample": sample,
    "transcribe": transcribe,
    "export": export,
    "inspect": inspect,
    "models": models,
    "bench": bench,
    "eval": evaluate,
    "roofline": roofline,
}

FAILED, BROKEN_PIPE = 1, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments without the program's name; None takes the process's own.

    Returns:
        0 when done; 1 when it failed, after one line on stderr that says why; 130 after Ctrl-C; 141 when the reader
        of stdout went away, as a shell reports SIGPIPE. With GOSSAMER_DEBUG set, failures raise with their traceback.

    Raises:
        SystemExit: wrong usage (2), `--help`, `--version` and `--print-completion` (0).
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows "?" for it
    _log.addHandler(_NOTES)  # once, however often
    try:
        parser = _parser()
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _drop_output()
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except Exception as error:
        _drop_output()
        if os.environ.get("GOSSAMER_DEBUG"):
            raise
        print(f"gossamer: error: {_explain(error)}", file=sys.stderr)
        return FAILED
    return code


class _Notes(logging.Handler):
    """Tells notes of the package on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"gossamer: note: {one_line(record.getMessage())}", file=sys.stderr)


_log = logging.getLogger("gossamer")
_NOTES = _Notes()


def _explain(error: Exception) -> str:
    """One line for people: bad input and a failed environment are told as they are, anything else is a bug."""
    text = one_line(str(error))
    if isinstance(error, OSError) and error.strerror:
        named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return one_line(f"{named}{error.strerror}")
    if isinstance(error, MemoryError):
        return f"out of memory{f': {text}' if text else ''}"
    if isinstance(error, (GossamerError, ValueError, OSError)):
        return text or type(error).__name__
    return f"this is a bug in gossamer: {type(error).__name__}: {text} (GOSSAMER_DEBUG=1 shows where)"


def _drop_output() -> None:
    """Writes out what stdout still holds; where that fails, drops it, so that the interpreter's exit stays quiet."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # stdout may be no real file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help(args: argparse.Namespace) -> int:
    """A line without a command asks what there is."""
    args.parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gossamer",
        description="Runs pruned transformers fast on ordinary machines, straight from compressed weights.",
        epilog="MODEL is a packed folder, a Hugging Face checkpoint folder, a GGUF file, a hub id, or the name of a "
        "built-in model. Models and measurements are kept under GOSSAMER_HOME (default ~/.cache/gossamer); with "
        "GOSSAMER_MEASURE=0 nothing is measured. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    parser.add_argument(
        "--print-completion",
        action=Completion,
        choices=SHELLS,
        help="print a script that completes commands and options in this shell, and exit",
    )
    parser.set_defaults(run=_help, parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, module in COMMANDS.items():
        summary = module.SUMMARY
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return parser
