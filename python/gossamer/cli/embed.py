"""`gossamer embed`: texts to vectors."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np

from ..errors import GossamerError, naming
from ..folders import check_new_file, write_file
from ..text.pooling import POOLS
from .options import (
    MODEL_HELP,
    add_adapter_option,
    add_engine_options,
    add_force_option,
    add_revision_option,
    input_lines,
    nonempty,
    open_model,
)
from .progress import progress

SUMMARY = "turn texts into vectors, with an encoder"


def add_pooling_options(group: argparse._ActionsContainer, truncate: bool | None = False) -> None:
    """Adds --pool and --truncate; the latter is `truncate` where it is not given."""
    group.add_argument(
        "--pool",
        choices=POOLS,
        help="mean of the states of a text's tokens, or the first one's (as the model's own files say, or else mean)",
    )
    group.add_argument(
        "--truncate",
        action="store_true",
        default=truncate,
        help="cut texts that the model's context does not hold; else they are an error",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="without any, lines are read from stdin, a text each")
    parser.add_argument("-m", "--model", required=True, metavar="MODEL", type=nonempty, help=MODEL_HELP)
    add_revision_option(parser)
    add_pooling_options(parser)
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="give vectors length 1 (as the model's own files say, or else yes)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=nonempty,
        metavar="FILE.npy",
        help="write float32 [texts, width]; without it, a JSON object a text on stdout, with text and embedding",
    )
    add_force_option(parser, "replace FILE.npy")
    add_adapter_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Embeds, writes or prints, and returns the exit code."""
    if args.output and not args.output.endswith(".npy"):
        args.parser.error("argument -o/--output: must end in .npy")
    if args.force and not args.output:
        args.parser.error("argument --force: needs -o/--output, which is what it replaces")
    if args.output:
        check_new_file(args.output, force=args.force)
    texts = args.texts or list(input_lines(args))
    if not texts:
        raise GossamerError("there is no text: give some, or lines on stdin")
    model = open_model(args, args.model, args.threads)
    with progress() as report:
        vectors = model.embed(texts, pool=args.pool, normalize=args.normalize, truncate=args.truncate, progress=report)
    if not args.output:
        for text, vector in zip(texts, vectors, strict=True):
            print(json.dumps({"text": text, "embedding": [float(value) for value in vector]}, ensure_ascii=False))
        return 0
    data = io.BytesIO()
    np.save(data, vectors)
    with naming(args.output, "cannot write"):
        write_file(Path(args.output), data.getvalue())
    return 0
