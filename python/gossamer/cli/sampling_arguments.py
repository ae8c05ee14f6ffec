"""Options of how a text is chosen, which `generate`, `chat` and `batch` share."""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..files import parse_json, read_json
from ..generation.sampling_options import GENERATE, SamplingOptions
from .options import given, integer, nonempty, number

if TYPE_CHECKING:
    from ..generation.model import Model

_log = logging.getLogger(__name__)

_OF_DRAWING = ("top_k", "typical_p", "top_p", "min_p", "seed")


def add_sampling_options(parser: argparse.ArgumentParser, defaults: SamplingOptions) -> None:
    """Adds the options of a text; `sampling_options` collects them.

    Args:
        parser: Where to.
        defaults: What holds where the model has no defaults of its own.
    """
    parser.add_argument(
        "-n",
        "--max-new-tokens",
        type=integer(1),
        metavar="N",
        help=f"most tokens to generate (default: the model's own max_new_tokens, or {defaults.max_new_tokens})",
    )
    group = parser.add_argument_group(
        "sampling",
        "Applied in the order biases, penalties, top-k, typical-p, top-p, min-p, temperature. Defaults are those of "
        "the model's generation_config.json; the ones below are for a model without.",
    )
    group.add_argument(
        "--temperature",
        type=number(0),
        metavar="T",
        help=f"0 takes the likeliest token, above 0 draws (default {defaults.temperature:g})",
    )
    group.add_argument(
        "--top-k",
        type=integer(0),
        metavar="K",
        help=f"draw from the K likeliest tokens; 0 is off (default {defaults.top_k})",
    )
    group.add_argument(
        "--top-p",
        type=number(0, 1, above=True),
        metavar="P",
        help="draw from the fewest likeliest tokens whose probabilities reach P; 1 is off "
        f"(default {defaults.top_p:g})",
    )
    group.add_argument(
        "--min-p",
        type=number(0, 1),
        metavar="P",
        help=f"draw from tokens at least P times as likely as the likeliest; 0 is off (default {defaults.min_p:g})",
    )
    group.add_argument(
        "--typical-p",
        type=number(0, 1, above=True),
        metavar="P",
        help="draw from the fewest tokens as surprising as the mean whose probabilities reach P; 1 is off "
        f"(default {defaults.typical_p:g})",
    )
    group.add_argument(
        "--repeat-penalty",
        type=number(0, above=True),
        metavar="X",
        help=f"make tokens that came lately less likely; 1 is off (default {defaults.repeat_penalty:g})",
    )
    group.add_argument(
        "--repeat-window",
        type=integer(0),
        metavar="N",
        help="of the repeat penalty: the latest N tokens, prompt included, are looked at; 0 is all "
        f"(default {defaults.repeat_window})",
    )
    group.add_argument(
        "--frequency-penalty",
        type=number(-math.inf),
        metavar="X",
        help="lower a token's logit by X for each time that the answer has it; 0 is off "
        f"(default {defaults.frequency_penalty:g})",
    )
    group.add_argument(
        "--presence-penalty",
        type=number(-math.inf),
        metavar="X",
        help=f"lower the logits of tokens that the answer has by X; 0 is off (default {defaults.presence_penalty:g})",
    )
    group.add_argument(
        "--logit-bias",
        action="append",
        type=_bias,
        metavar="TOKEN=X",
        help="add X to the logit of the token of this number; repeatable",
    )
    group.add_argument(
        "--beams",
        type=integer(1),
        metavar="N",
        help="write N texts side by side and take the likeliest, which comes whole; 1 is off "
        f"(default {defaults.beams})",
    )
    group.add_argument(
        "--length-penalty",
        type=number(-math.inf),
        metavar="X",
        help=f"of beams: above 0 prefers long texts, below 0 short ones (default {defaults.length_penalty:g})",
    )
    group.add_argument(
        "--seed", type=integer(0), metavar="S", help=f"the same seed draws the same text (default {defaults.seed})"
    )
    group.add_argument(
        "--stop", action="append", type=nonempty, metavar="TEXT", help="end before this text; repeatable"
    )
    group.add_argument(
        "--context-shift",
        type=integer(0),
        metavar="KEEP",
        help="when the context is full, keep its first KEEP tokens, drop the older half of the others and go on "
        "(default: the text ends)",
    )
    rules = parser.add_argument_group(
        "constraints", "What the answer has to be, by llguidance (pip install 'gossamer[grammar]'); one of them."
    ).add_mutually_exclusive_group()
    rules.add_argument(
        "--schema", type=_schema, metavar="FILE|JSON", help="JSON that is an instance of this JSON schema"
    )
    rules.add_argument("--regex", type=nonempty, metavar="REGEX", help="a text that matches this regular expression")
    rules.add_argument("--grammar", type=_text_of, metavar="FILE", help="a text of this grammar, as Lark writes them")


def add_prompt_cache_option(parser: argparse._ActionsContainer, what: str) -> None:
    """Adds --prompt-cache; None where it is not given."""
    parser.add_argument("--prompt-cache", type=nonempty, metavar="FILE", help=what)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns those options of `add_sampling_options` that were given."""
    if args.length_penalty is not None and args.beams is None:
        args.parser.error("argument --length-penalty: needs --beams")
    return given(args, *(field.name for field in fields(SamplingOptions) if hasattr(args, field.name)))


def chosen_sampling(args: argparse.Namespace, model: Model, fallback: SamplingOptions = GENERATE) -> dict[str, Any]:
    """Returns what `sampling_options` does, for a model; notes what changes nothing where the likeliest is taken."""
    options = sampling_options(args)
    idle = [name for name in _OF_DRAWING if name in options]
    if idle and model.defaults(fallback).changed(options).temperature == 0:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        _log.warning("%s: nothing is drawn at temperature 0, and this changes nothing; give --temperature", names)
    return options


def _schema(text: str) -> dict[str, Any]:
    """Reads a schema, or the file that holds it."""
    if not nonempty(text).lstrip().startswith("{"):
        return read_json(Path(text))
    try:
        return dict(parse_json(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from None


def _text_of(path: str) -> str:
    """Reads a file's text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise GossamerError(f"{path}: not UTF-8: {error.reason} at byte {error.start + 1}") from None


def _bias(text: str) -> tuple[int, float]:
    """Reads a token's number and what is added to its logit."""
    token, sign, bias = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"must be TOKEN=X, as 42=-100, got {text!r}")
    return integer(0)(token), number(-math.inf)(bias)


def add_logprobs_option(parser: argparse._ActionsContainer) -> None:
    """Adds --logprobs, for commands whose answers have room for them; `sampling_options` collects it."""
    parser.add_argument(
        "--logprobs",
        type=integer(0),
        metavar="N",
        help="tell the log-probability of every token, and of the N likeliest at its position",
    )
