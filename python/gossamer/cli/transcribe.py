"""`gossamer transcribe`: speech to text and subtitles, file by file, written as it is heard."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from ..audio.formats import FORMATS, Writer
from ..errors import GossamerError, naming, one_line
from ..folders import check_new_file
from ..part_files import Part
from .interrupt import Interrupt
from .options import (
    HUB_HELP,
    add_engine_options,
    add_force_option,
    add_revision_option,
    given,
    integer,
    nonempty,
    open_model,
)
from .progress import progress

if TYPE_CHECKING:
    from ..generation.model import Model
    from ..progress import Progress

SUMMARY = "write down what is said in audio files"

_log = logging.getLogger(__name__)
_STDIN = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", type=nonempty, help="WAV, FLAC, OGG or MP3 files; - is standard input"
    )
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        metavar="MODEL",
        type=nonempty,
        help=f"a Whisper: packed folder, Hugging Face checkpoint folder, {HUB_HELP}, or folder of CTranslate2",
    )
    add_revision_option(parser)
    parser.add_argument(
        "--language", metavar="LANG", type=_language, help="what is spoken, as en or english (default: listens for it)"
    )
    parser.add_argument("--translate", action="store_true", help="write English, whatever is spoken")
    parser.add_argument("--timestamps", action="store_true", help="begin lines of txt with their times")
    parser.add_argument(
        "--words", action="store_true", default=None, help="tell when each word is said (srt, vtt, json)"
    )
    parser.add_argument("--format", choices=FORMATS, help="of what is written (default txt)")
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        type=nonempty,
        help="a file; a folder for NAME.FORMAT of each where it is one or there are several files (default: stdout)",
    )
    add_force_option(parser, "replace files that are there, by whole transcripts alone")
    parser.add_argument("--beams", type=integer(1), metavar="N", help="texts written side by side (default 5)")
    parser.add_argument("--prompt", metavar="TEXT", type=nonempty, help="text before the first window: names, spelling")
    parser.add_argument(
        "--no-previous", dest="previous", action="store_false", default=None, help="tell no window the text before it"
    )
    parser.add_argument(
        "--seed", type=integer(0), metavar="S", help="of draws where the likeliest text fails (default 0)"
    )
    add_engine_options(parser)


def _language(text: str) -> str:
    from ..audio.languages import language_code

    try:
        return language_code(text)
    except GossamerError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Transcribes, and returns the exit code: 1 where some file failed, after a line for each."""
    if args.json and args.format not in (None, "json"):
        args.parser.error(f"argument --json: not allowed with argument --format {args.format}")
    args.format = "json" if args.json else args.format or "txt"
    if args.timestamps and args.format != "txt":
        args.parser.error(f"argument --timestamps: is for txt; {args.format} has times anyway")
    if args.force and args.output is None:
        args.parser.error("argument --force: needs -o/--output, which is what it replaces")
    if args.words and args.format == "txt":
        args.parser.error("argument --words: needs --format srt, vtt or json")
    if len(args.audio) > 1 and args.output is None and args.format != "txt":
        args.parser.error(f"argument --output: is needed for several files as {args.format}")
    if args.audio.count(_STDIN) > 1:
        args.parser.error("argument AUDIO: standard input can be read once")
    targets = _targets(args)
    model = open_model(args, args.model, args.threads)
    failed = False
    with Interrupt() as interrupt, progress() as report:
        for audio, target in zip(args.audio, targets, strict=True):
            interrupt.begun = False
            try:
                _transcribe(args, model, audio, target, interrupt, report)
            except GossamerError as error:
                if len(args.audio) == 1:
                    raise
                failed = True
                print(f"gossamer: error: {one_line(str(error))}", file=sys.stderr)
            if interrupt():
                break
    return interrupt.code or int(failed)


def _transcribe(
    args: argparse.Namespace,
    model: Model,
    audio: str,
    target: Path | None,
    interrupt: Interrupt,
    report: Progress,
) -> None:
    from ..audio.transcript import Heard
    from ..generation.speech import segments

    options: dict[str, Any] = given(args, "language", "beams", "prompt", "previous", "seed", "words")
    options["task"] = "translate" if args.translate else "transcribe"
    heard, writer = Heard(), Writer(args.format, times=args.timestamps)
    source: str | BinaryIO = sys.stdin.buffer if audio == _STDIN else audio
    pieces = segments(model, source, heard, report, **options)
    first = next(pieces, None)  # before anything is opened: what is no audio leaves nothing
    with _opened(target, interrupt) as write:
        if target is None and len(args.audio) > 1:
            write(f"==> {audio} <==\n")
        write(writer.begin())
        interrupt.begun = True
        complete = False
        try:
            while first is not None:
                write(writer.add(first))
                first = None if interrupt() else next(pieces, None)
            complete = not interrupt()
        finally:  # JSON of what breaks off is whole, too
            write(writer.end(heard, model=args.model, audio=audio, complete=complete))
    pieces.close()


def _targets(args: argparse.Namespace) -> list[Path | None]:
    """Where each transcript goes; all are checked before the first is begun."""
    if args.output is None:
        return [None] * len(args.audio)
    output = Path(args.output)
    found = [output]
    if len(args.audio) > 1 or output.is_dir() or args.output.endswith(os.sep):
        found = [output / f"{'stdin' if audio == _STDIN else Path(audio).stem}.{args.format}" for audio in args.audio]
        if len(set(found)) < len(found):
            raise GossamerError(
                f"{args.output}: two files would be written as one: their names differ by folder or type"
            )
        output.mkdir(parents=True, exist_ok=True)
    for target in found:
        check_new_file(target, force=args.force)
        if any(audio != _STDIN and target.resolve() == Path(audio).resolve() for audio in args.audio):
            raise GossamerError(f"{target}: is the audio itself")
    return list(found)


@contextmanager
def _opened(target: Path | None, interrupt: Interrupt) -> Generator[Callable[[str], None], None, None]:
    """Gives what writes to a file, or to stdout, at once: what is written stays, however it ends.

    A file that is there is replaced by a whole transcript alone, and stays as it was otherwise.
    """

    def to(stream: TextIO) -> Callable[[str], None]:
        def write(text: str) -> None:
            try:
                stream.write(text)
                stream.flush()
            except OSError as error:
                if target is None:
                    raise
                raise GossamerError(f"{target}: cannot write: {error.strerror or error}") from None

        return write

    if target is None:
        yield to(sys.stdout)
    elif target.is_file():
        with _replacing(target, interrupt) as stream:
            yield to(stream)
    else:
        with naming(target):
            stream = target.open("w", encoding="utf-8")
        try:
            yield to(stream)
        except GossamerError:
            if target.is_file() and not target.stat().st_size:
                target.unlink()
            raise
        finally:
            with suppress(OSError):  # what could not be written is told already
                stream.close()


@contextmanager
def _replacing(target: Path, interrupt: Interrupt) -> Generator[TextIO, None, None]:
    """Gives a file that takes the place of another when the block ends well and Ctrl-C was not pressed."""
    with naming(target):
        part = Part(Path(os.path.realpath(target)))
    try:
        with os.fdopen(os.dup(part.handle), "w", encoding="utf-8") as stream:
            yield stream
        if interrupt():
            _log.warning("%s: is left as it was, since the new transcript did not come to its end", target)
            return
        with naming(target):
            os.fsync(part.handle)
            part.settle()
    finally:
        part.close()
