"""`gossamer serve`: models behind HTTP, for any client that speaks to OpenAI."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GossamerError
from ..generation.scheduler import MOST
from ..loading import DEFAULT_MODEL
from ..machine.memory import available_memory
from .batch import size
from .options import (
    MODEL_HELP,
    add_device_option,
    add_draft_options,
    add_engine_options,
    add_revision_option,
    chosen_drafts,
    integer,
    nonempty,
    number,
    open_model,
)

if TYPE_CHECKING:
    from ..serving.served import Registry
    from ..serving.settings import Settings

SUMMARY = "answer over HTTP, as OpenAI's API does"

_KEY_VARIABLE = "GOSSAMER_API_KEY"
_LOCAL = ("localhost", "127.0.0.1", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.epilog = (
        "A browser finds a page to chat at http://HOST:PORT/, clients the API at http://HOST:PORT/v1; see "
        "docs/serving.md. SIGTERM and Ctrl-C let texts end that are being written; a second one does not."
    )
    parser.add_argument(
        "-m",
        "--model",
        action="append",
        type=_named,
        metavar="[NAME=]MODEL",
        help=f"{MODEL_HELP}, and the name that clients use; repeatable (default {DEFAULT_MODEL})",
    )
    add_revision_option(parser)
    parser.add_argument(
        "--adapter",
        dest="named_adapters",  # `open_model` would load "adapter" for all texts
        action="append",
        type=_named,
        metavar="[MODEL:]NAME=PATH",
        help="an adapter, for requests that give its name as the model's: a PEFT folder (LoRA), or differences of "
        "tensors; of the first model where none is named; repeatable",
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host", default="127.0.0.1", type=nonempty, help="address to listen on (default %(default)s)"
    )
    network.add_argument(
        "--port",
        default=8000,
        type=integer(0, 65535),
        help="port to listen on; 0 takes a free one (default %(default)s)",
    )
    network.add_argument(
        "--api-key",
        action="append",
        type=nonempty,
        metavar="KEY",
        help=f"answer only who has this key; repeatable (default: {_KEY_VARIABLE}, which others cannot read off the "
        "list of processes)",
    )
    network.add_argument(
        "--allow-host",
        action="append",
        type=nonempty,
        metavar="NAME",
        help="answer to this name, too, or to any where it is *; repeatable (default: this machine's own names for "
        "itself where --host is one of them, otherwise any)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--batch",
        type=integer(1),
        default=MOST,
        metavar="N",
        help="texts that are written at once (default %(default)s)",
    )
    limits.add_argument(
        "--max-queue",
        type=integer(0),
        default=256,
        metavar="N",
        help="texts that may wait beside these; more are told to try again (default %(default)s)",
    )
    limits.add_argument(
        "--prefix-cache",
        dest="retained",
        type=integer(0),
        default=16,
        metavar="N",
        help="ended texts whose keys and values stay for those that begin alike, as the next turn of a conversation "
        "does, until others need the room (default %(default)s)",
    )
    limits.add_argument(
        "--kv-memory",
        dest="kv_limit",
        type=size,
        default=0,
        metavar="BYTES",
        help="most memory for the keys and values of a model, as 2G: beyond it texts wait for one another (default: "
        "half of what is free at the start, shared among the models)",
    )
    limits.add_argument(
        "--max-body", type=size, default=4 << 20, metavar="BYTES", help="most bytes of a request (default 4M)"
    )
    limits.add_argument(
        "--max-sound", type=size, default=32 << 20, metavar="BYTES", help="most bytes of a file of sound (default 32M)"
    )
    limits.add_argument(
        "--max-prompt", type=integer(1), default=0, metavar="N", help="most tokens of a prompt (default: the context)"
    )
    limits.add_argument(
        "--max-tokens", type=integer(1), default=0, metavar="N", help="most tokens of an answer (default: the context)"
    )
    limits.add_argument(
        "--max-connections",
        type=integer(1),
        default=1000,
        metavar="N",
        help="connections at once (default %(default)s)",
    )
    limits.add_argument(
        "--request-timeout",
        type=number(0, above=True),
        default=20.0,
        metavar="S",
        help="seconds that a client may take to send a request (default %(default)g)",
    )
    limits.add_argument(
        "--grace",
        type=number(0),
        default=30.0,
        metavar="S",
        help="seconds that texts get to end when the server is stopped (default %(default)g)",
    )
    add_draft_options(parser)
    add_device_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until a signal comes, and returns the exit code."""
    from ..serving import need_packages

    need_packages()
    from ..serving import logs
    from ..serving.server import serve

    limits = settings(args)
    registry = load_models(args, limits)
    logs.set_up()
    serve(registry, limits, _tell)
    return 0


def settings(args: argparse.Namespace) -> Settings:
    """Returns what the options say."""
    from ..serving.settings import Settings

    keys = args.api_key or list(filter(None, [os.environ.get(_KEY_VARIABLE)]))
    hosts = [*(_LOCAL if args.host in _LOCAL else ()), *(name.lower() for name in args.allow_host or ())]
    if args.host not in _LOCAL and not keys:
        print(
            f"gossamer: note: {args.host} can be reached by others, and no --api-key is asked of them", file=sys.stderr
        )
    return Settings(
        host=args.host,
        port=args.port,
        api_keys=tuple(keys),
        hosts=() if "*" in hosts else tuple(hosts),
        most=args.batch,
        max_queue=args.max_queue,
        retained=args.retained,
        max_body=args.max_body,
        max_sound=args.max_sound,
        max_prompt=args.max_prompt,
        max_tokens=args.max_tokens,
        max_connections=args.max_connections,
        request_seconds=args.request_timeout,
        grace_seconds=args.grace,
    )


def load_models(args: argparse.Namespace, limits: Settings) -> Registry:
    """Loads the models and adapters that the options name.

    Raises:
        GossamerError: one is not usable, or two have one name.
    """
    from ..serving.served import Registry, Served

    models = args.model or [("", DEFAULT_MODEL)]
    if args.revision is not None and len(models) > 1:
        raise GossamerError("--revision is for one model; with several, write ORG/NAME@REVISION")
    if not args.kv_limit and args.device == "cpu":
        args.kv_limit = (available_memory() or 0) // (2 * len(models))
    registry = Registry()
    for name, path in models:
        own = name or (Path(path).resolve().name if Path(path).exists() else path)
        model = open_model(args, path, args.threads)
        draft = None if model.config.head is None else chosen_drafts(args, model)
        registry.add(Served(own, model, limits, draft))
    for name, path in args.named_adapters or ():
        base, sign, own = name.rpartition(":")
        served = registry.named(base) if sign else next(iter(registry))
        if not own:
            raise GossamerError(f"--adapter {path}: needs a name, as in --adapter NAME={path}")
        served.model.adapters.load(path, own, weight=0)
        registry.add_adapter(own, served, own)
    return registry


def _named(text: str) -> tuple[str, str]:
    """Reads a name and what it stands for; the name may be left out."""
    name, sign, value = nonempty(text).partition("=")
    if not sign or Path(text).exists():
        return "", text
    if not name or not value or len(name) > 256 or not name.isprintable():
        raise argparse.ArgumentTypeError(f"must be MODEL or NAME=MODEL, got {text!r}")
    return name, value


def _tell(url: str) -> None:
    """Says on a terminal where to look."""
    if sys.stderr.isatty():
        print(f"gossamer: {url}/ to chat, {url}/v1 for clients; Ctrl-C stops", file=sys.stderr)
