"""`gossamer inspect`: what a model's matrices look like, and what they take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import GossamerError
from .layers import Layer, layer_table, totals
from .options import MODEL_HELP, nonempty
from .output import print_json

SUMMARY = "show shapes, zeros, formats and bytes of every layer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL", type=nonempty, help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw zeros and bytes by layer into this picture")


def run(args: argparse.Namespace) -> int:
    """Looks, prints, and returns the exit code."""
    figure = _figure() if args.plot else None
    layers = _layers(args.model)
    if figure is not None:
        _plot(figure, layers, args.plot)
    if args.json:
        document = {"model": args.model, "layers": [layer.to_dict() for layer in layers], "totals": totals(layers)}
        print_json(document)
    else:
        print(layer_table(layers))
    return 0


def _layers(model: str) -> list[Layer]:
    raise GossamerError(model)


def _figure() -> Any:
    """An empty picture; before the work, so that a missing library is told at once."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise GossamerError("--plot needs matplotlib: pip install 'gossamer[plot]'") from None
    return Figure(figsize=(10, 6), layout="constrained")


def _plot(figure: Any, layers: list[Layer], path: Path) -> None:
    """Draws the fraction of zeros and the megabytes of every matrix, in the model's order."""
    places = range(len(layers))
    zeros, sizes = figure.subplots(2, 1, sharex=True)
    zeros.bar(places, [100 * layer.zeros for layer in layers], width=1.0)
    zeros.set_ylabel("zeros, %")
    zeros.set_ylim(0, 100)
    for kind in dict.fromkeys(f"{layer.format} {layer.type}" for layer in layers):
        chosen = [(i, layer.bytes / 1e6) for i, layer in enumerate(layers) if f"{layer.format} {layer.type}" == kind]
        sizes.bar(*zip(*chosen, strict=True), width=1.0, label=kind)
    sizes.set_yscale("log")
    sizes.set_ylabel("MB")
    sizes.set_xlabel("matrix, in the model's order")
    sizes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:  # an ending that names no kind of picture
        raise GossamerError(f"--plot {path}: {error}") from None
