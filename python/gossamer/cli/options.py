"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..formats import FLOAT_TYPES, FORMATS, GROUPS, KV_TYPES, TYPES
from ..generation.drafts import KINDS
from ..loading import DEFAULT_MODEL
from .progress import progress

if TYPE_CHECKING:
    from ..generation.drafts import Drafts
    from ..generation.model import Model

HUB_HELP = "hub id (ORG/NAME or ORG/NAME@REVISION)"
MODEL_HELP = f"packed folder, Hugging Face checkpoint folder, GGUF file, {HUB_HELP}, or name of a built-in model"
SOURCE_HELP = f"Hugging Face checkpoint folder, GGUF file or {HUB_HELP}"


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Returns an argument type: a whole number of at least `minimum`, and at most `maximum` where there is one."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"must be at most {maximum}, got {value}")
        return value

    return parse


def number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """Returns an argument type: a finite number from `low` (or above it) to `high`, either of which may be infinite."""
    span = f"{'above' if above else 'at least'} {low:g}" if math.isfinite(low) else "finite"
    span += f" and at most {high:g}" if math.isfinite(high) else ""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
        if not (math.isfinite(value) and low <= value <= high) or (above and value == low):
            raise argparse.ArgumentTypeError(f"must be {span}, got {text}")
        return value

    return parse


def nonempty(text: str) -> str:
    """An argument type: text with at least one letter."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def fraction(text: str) -> float:
    """Reads a fraction of zeros: at least 0 and below 1."""
    value = number(0, 1)(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"must be below 1, got {text}")
    return value


def pattern(text: str) -> tuple[int, int]:
    """Reads an N:M pattern."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be N:M with 1 <= N <= M, as in 2:4, got {text!r}")
    return int(match[1]), int(match[2])


def add_target_options(parser: argparse._ActionsContainer, default: float) -> argparse._ActionsContainer:
    """Adds --sparsity and --pattern, of which one may be given; both are None otherwise. Returns their group."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--sparsity",
        type=fraction,
        metavar="X",
        help=f"fraction of zeros in the matrices of the blocks (default {default})",
    )
    target.add_argument(
        "--pattern", type=pattern, metavar="N:M", help="keep N of every M inputs, as in 2:4, instead of --sparsity"
    )
    return target


def add_group_option(parser: argparse._ActionsContainer) -> None:
    """Adds --group; None where it is not given."""
    parser.add_argument(
        "--group",
        type=int,
        choices=GROUPS,
        help="inputs that one scale of int8 and int4 values serves; 0 is a whole row (default 64)",
    )


def check_group(args: argparse.Namespace, *types: str | None) -> None:
    """Refuses --group where all values are floats; types: of the values that are asked for."""
    if args.group is not None and all(type in FLOAT_TYPES for type in types):
        args.parser.error(f"argument --group: is for scales of int8 and int4 values, not for {types[0]}")


def add_packing_options(parser: argparse._ActionsContainer, types: Sequence[str]) -> None:
    """Adds --group, --format and --head; None where they are not given."""
    add_group_option(parser)
    parser.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        help="format of the blocks' matrices; auto takes, for each, what should be fastest here; nm is "
        "bitmap where no N:M pattern holds (default auto)",
    )
    parser.add_argument(
        "--head",
        choices=types,
        help="type of embedding and head; auto is that of the blocks, but int8 with int4 (default auto)",
    )


def add_force_option(parser: argparse._ActionsContainer, what: str = "replace a model that lies at DST") -> None:
    """Adds --force."""
    parser.add_argument("--force", action="store_true", help=what)


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns those of the named options that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Adds -m/--model with the built-in default."""
    parser.add_argument(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        type=nonempty,
        help=f"{MODEL_HELP} (default %(default)s)",
    )
    add_revision_option(parser)


def add_revision_option(parser: argparse._ActionsContainer, of: str = "MODEL") -> None:
    """Adds --revision; None where it is not given."""
    parser.add_argument(
        "--revision", type=nonempty, metavar="REV", help=f"branch, tag or commit of {of}, where that is a hub id"
    )


def add_engine_options(parser: argparse.ArgumentParser, *, threads: bool = True) -> None:
    """Adds what `open_model` needs beside the model."""
    group = parser.add_argument_group("engine")
    if threads:
        group.add_argument(
            "--threads", type=integer(1), default=0, metavar="N", help="threads (default: as many as pay)"
        )
    group.add_argument(
        "--kv",
        choices=KV_TYPES,
        default="f32",
        help="type of cached keys and values: where inputs are rounded anyway, auto takes bf16 if that is "
        "fast, or f16 if a full context outweighs the weights (default f32)",
    )
    group.add_argument(
        "--activations",
        choices=("auto", "f32", "bf16", "a8"),
        default="auto",
        help="type that inputs of linears are rounded to: auto takes the fastest for the weights (default auto)",
    )
    group.add_argument(
        "--weights",
        choices=("auto", *TYPES),
        help="pack a checkpoint that is not packed yet, in memory, with values of this type (default: as stored)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Adds --device."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default cpu; see docs/gpu.md)"
    )


def open_model(args: argparse.Namespace, model: str, threads: int) -> Model:
    """Loads `model` with the engine options, with progress on stderr."""
    from ..loading import load

    with progress() as report:
        opened = load(
            model,
            device=getattr(args, "device", "cpu"),
            threads=threads,
            kv=args.kv,
            activations=args.activations,
            weights=args.weights,
            revision=args.revision,
            kv_limit=getattr(args, "kv_limit", 0),
            progress=report,
        )
    for path, weight in getattr(args, "adapter", None) or ():
        opened.adapters.load(path, path, weight=weight)
    return opened


def add_adapter_option(parser: argparse._ActionsContainer) -> None:
    """Adds --adapter, for `open_model`."""
    parser.add_argument(
        "--adapter",
        action="append",
        type=_adapter,
        metavar="PATH[=WEIGHT]",
        help="add an adapter, unmerged: a PEFT folder (LoRA), or differences of tensors; repeatable (weight 1)",
    )


def _adapter(text: str) -> tuple[str, float]:
    """Reads a path with or without a weight behind its last equals sign."""
    path, sign, weight = nonempty(text).rpartition("=")
    if not sign or Path(text).exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be PATH or PATH=WEIGHT, got {text!r}") from None
    if not path or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be PATH or PATH=WEIGHT with a finite weight, got {text!r}")
    return path, value


def need_torch(what: str) -> None:
    """Raises `GossamerError` where torch is missing that something needs."""
    try:
        import torch  # noqa: F401 - to say at once what is missing
    except ImportError:
        raise GossamerError(f"{what} needs torch: pip install 'gossamer[torch]'") from None


def add_draft_options(parser: argparse._ActionsContainer) -> None:
    """Adds --draft and --draft-corpus, for `chosen_drafts`."""
    parser.add_argument(
        "--draft",
        choices=KINDS,
        default="auto",
        help="guess tokens from what the same words were followed by before, and check several in one step, where that "
        "is faster; the text is the same (default %(default)s)",
    )
    parser.add_argument(
        "--draft-corpus",
        type=nonempty,
        metavar="PATH",
        help="a text file, or a folder of them, that is looked into beside the text itself",
    )


def chosen_drafts(args: argparse.Namespace, model: Model) -> Drafts | None:
    """Returns the drafts that were asked for; measures what steps cost, once, with progress on stderr."""
    from ..generation.cost_measured import measure

    with progress() as report:
        drafts = model.drafts(args.draft, args.draft_corpus, report)
        if args.draft != "off":
            measure(model, report)
    return drafts


def add_system_option(parser: argparse.ArgumentParser) -> None:
    """Adds --system; None where it is not given."""
    parser.add_argument(
        "--system", type=nonempty, metavar="TEXT", help="a system message: who the model is to be, and how it answers"
    )


def input_lines(args: argparse.Namespace) -> Iterator[str]:
    """Gives the lines of stdin, without the mark that some shells put first; nobody is waited for at a terminal.

    Raises:
        GossamerError: a line is no text.
    """
    if sys.stdin.isatty():
        args.parser.error("TEXT is missing: give it as an argument or on standard input")
    try:
        for number, line in enumerate(sys.stdin):
            yield (line if number else line.removeprefix("\ufeff")).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise GossamerError(f"standard input is not {error.encoding} text: {error.reason}") from None
