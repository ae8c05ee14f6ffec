"""`gossamer translate`: what a model with an encoder writes about texts, line by line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GossamerError
from ..generation.batch import Request, answers
from ..generation.sampling_options import GENERATE, SamplingOptions, text_alone
from ..text.source_language import languages
from .options import (
    MODEL_HELP,
    add_engine_options,
    add_revision_option,
    input_lines,
    nonempty,
    open_model,
)
from .output import print_json
from .sampling_arguments import add_sampling_options, chosen_sampling

if TYPE_CHECKING:
    from ..generation.model import Model

SUMMARY = "translate texts, or lines of stdin and files, with a model that has an encoder"

_log = logging.getLogger("gossamer")
_CUT = ("length", "context")  # ways to end that are no text's own
_LINES = 256  # that are sorted by length, so that those in a batch end together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; without one, lines of stdin are read")
    parser.add_argument("--file", action="append", default=[], type=Path, help="read lines of a file, too")
    parser.add_argument("-m", "--model", required=True, metavar="MODEL", type=nonempty, help=MODEL_HELP)
    add_revision_option(parser)
    parser.add_argument("--to", metavar="LANG", help="language to write, as the model's tokens call it: deu_Latn, de")
    parser.add_argument("--from", metavar="LANG", help="language of the texts (default: what the model's files name)")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    add_sampling_options(parser, GENERATE)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Translates, and returns the exit code."""
    model = open_model(args, args.model, args.threads)
    if model.config.encoder is None or model.config.encoder.embedding.mel:
        raise GossamerError(f"{args.model}: has no encoder of texts, and translates nothing")
    for option, choose in (("to", model.tokenizer.translate_to), ("from", model.tokenizer.translate_from)):
        if (language := getattr(args, option)) is not None:
            try:
                choose(language)
            except GossamerError as error:
                raise GossamerError(f"--{option}: {error}") from None
    several = len(languages(model.tokenizer.added_tokens()))
    if several > 1 and "forced_bos_token_id" not in model.tokenizer.generation:
        _log.warning("%s: writes %d languages, and nothing says which one: give --to", args.model, several)
    options = text_alone(model.defaults().changed(chosen_sampling(args, model)))
    found, cut = [], 0
    lines = _lines(args)
    while part := list(islice(lines, _LINES)):
        for line, (text, finish) in zip(part, _translated(model, part, options), strict=True):
            cut += finish in _CUT
            if args.json:
                found.append({"text": line, "translation": text, "finish": finish})
            else:
                print(text, flush=True)
    if cut:
        most = f"at {options.max_new_tokens} tokens or the context's end"
        _log.warning("%d of the translations did not come to their end %s; -n allows more tokens", cut, most)
    if args.json:
        print_json({"model": args.model, "translations": found})
    return 0


def _translated(model: Model, lines: list[str], options: SamplingOptions) -> list[tuple[str, str]]:
    """Texts about lines, in their order, and why each ended; an empty line has an empty one."""
    order = sorted((at for at, line in enumerate(lines) if line.strip()), key=lambda at: len(lines[at]))
    found = [("", "")] * len(lines)
    requests = [Request(lines[at], options, draw=draw) for draw, at in enumerate(order)]
    for at, answer in zip(order, answers(model, requests), strict=True):
        if answer.error is not None or answer.completion is None:
            raise GossamerError(f"{lines[at]!r:.40}: {answer.error}") from answer.error
        found[at] = " ".join(answer.completion.text.split()), answer.completion.finish
    return found


def _lines(args: argparse.Namespace) -> Iterator[str]:
    yield from args.texts
    for path in args.file:
        yield from _lines_of(path)
    if not args.texts and not args.file:
        yield from input_lines(args)


def _lines_of(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line.rstrip("\r\n") for line in file)
    except UnicodeDecodeError as error:
        raise GossamerError(f"{path}: is not UTF-8 text: {error.reason}") from None
