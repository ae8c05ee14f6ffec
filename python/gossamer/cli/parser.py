"""The parser of the command line: what is wrong in one line, with what was probably meant; completion for shells."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import GossamerError, did_you_mean

SHELLS = ("bash", "zsh")

_PATHS = ("SRC", "DST", "MODEL", "STUDENT", "TEACHER", "FILE", "FILE.png", "FILE|JSON", "PATH", "AUDIO")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it, and takes no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        options["allow_abbrev"] = False
        super().__init__(**options)
        self._line: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parses as the base class does, and remembers the line for `error`."""
        self._line = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}{self._meant(message)} (see {self.prog} --help)\n")

    def _meant(self, message: str) -> str:
        """What the first unknown option of the line was probably meant to be; empty where all are known."""
        for word in self._line:
            if word == "--":
                break
            name = word.partition("=")[0]
            if re.match(r"--\w", name) and name not in self._option_string_actions:
                unknown = "" if name in message else f"; there is no {name}"
                return unknown + did_you_mean(name, self._option_string_actions)
        return ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise


class Version(argparse.Action):
    """Prints the version; looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Prints and ends."""
        from .. import __version__

        print(f"gossamer {__version__}")
        parser.exit()


class Completion(argparse.Action):
    """Prints a shell's script that completes commands, options, their choices and paths."""

    def __call__(self, parser: argparse.ArgumentParser, _namespace: object, values: Any, *_: object) -> NoReturn:
        """Prints and ends."""
        try:
            import shtab
        except ImportError:
            raise GossamerError("--print-completion needs shtab: pip install shtab") from None
        for each in _parsers(parser):
            for action in each._actions:
                if (action.metavar or action.dest.upper()) in _PATHS:
                    setattr(action, "complete", shtab.FILE)  # noqa: B010 - argparse does not know this attribute
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser, those of its commands, and those of theirs."""
    commands = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(inner for choices in commands for command in choices.values() for inner in _parsers(command))]
