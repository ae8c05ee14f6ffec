"""`gossamer inspect`: what a model's matrices look like, and what they take."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..arch import family
from ..checkpoints.branches import delta_name
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError
from ..formats import VALUE_BITS, best_pattern, measure
from ..pictures import new_figure
from .layer_picture import draw
from .layers import Layer, layer_table, totals, within
from .options import MODEL_HELP, add_revision_option, nonempty
from .output import print_json
from .progress import progress

SUMMARY = "show shapes, zeros, formats, bytes and times of every layer"

_FULL = 0.9
"""Least share of an N:M pattern's places that hold values, for the pattern to be meant."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL", type=nonempty, help=MODEL_HELP)
    add_revision_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--verify", action="store_true", help="read a packed folder whole and hold its files against their checksums"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw zeros, formats and bytes by block and part into this picture",
    )


def run(args: argparse.Namespace) -> int:
    """Looks, prints, and returns the exit code."""
    if args.verify:
        return _verify(args)
    figure = new_figure(args.plot) if args.plot else None
    layers = _layers(args.model, args.revision)
    if figure is not None:
        draw(figure, layers, args.plot)
    if args.json:
        document = {"model": args.model, "layers": [layer.to_dict() for layer in layers], "totals": totals(layers)}
        print_json(document)
    else:
        print(layer_table(layers))
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Prints a line for each file, and fails if one has changed."""
    from ..loading import locate
    from ..packing.folder import changed_files, is_packed

    if args.plot:
        args.parser.error("--plot does not go with --verify, which looks at files alone")
    with progress() as report:
        path = locate(args.model, report, args.revision)
    if not is_packed(path):
        raise GossamerError(f"{path}: is not packed; packed folders alone have checksums")
    changed = changed_files(path)
    if args.json:
        print_json({"model": args.model, "changed": changed})
    else:
        for name, has in changed.items():
            print(f"{name}: {'changed' if has else 'ok'}")
    if any(changed.values()):
        raise GossamerError(f"{path}: {sum(changed.values())} of {len(changed)} files are not what was written")
    return 0


def _layers(model: str, revision: str | None) -> list[Layer]:
    """The matrices of a packed folder as they are stored, or of a checkpoint, measured."""
    from ..checkpoints import open_checkpoint
    from ..loading import locate
    from ..packing.folder import Entry, is_packed, read_packed

    with progress() as report:
        path = locate(model, report, revision)
        if is_packed(path):
            packed = read_packed(path)
            entries = {name: Entry.of(weight, packed.reasons[name]) for name, weight in packed.weights.items()}
            return within([Layer.of(name, entry) for name, entry in entries.items()], packed.config)
        checkpoint = open_checkpoint(path)
        sources = checkpoint.sources()
        layers = []
        for done, (name, source) in enumerate(sources.items()):
            report(done, len(sources), "measuring")
            values = checkpoint.read(source)
            if values.ndim == 1:
                continue
            layers.append(_measured(name, values, checkpoint.dtype(source.tensor)))
            if branch := checkpoint.low_rank.get(source.tensor):
                layers += [_measured(name + LOW_RANK_U, branch.u, "f32"), _measured(name + LOW_RANK_V, branch.v, "f32")]
            for number, tensor in enumerate(checkpoint.parallel.get(source.tensor, ()), 1):
                values = checkpoint.read(replace(source, tensor=tensor, plus=0.0))
                layers.append(_measured(delta_name(name, number), values, checkpoint.dtype(tensor)))
        return within(layers, family(checkpoint.config).describe(checkpoint.config))


def _measured(name: str, values: NDArray[np.float32], dtype: str) -> Layer:
    shape = measure(values)
    pattern = best_pattern(shape)
    if pattern is not None and (1 - shape.zeros) * pattern[1] < _FULL * pattern[0]:
        pattern = None  # it holds by chance
    return Layer(
        name=name,
        rows=shape.rows,
        cols=shape.cols,
        zeros=shape.zeros,
        pattern="{}:{}".format(*pattern) if pattern else "",
        format="dense",
        type=dtype,
        bytes=_stored_bytes(dtype, values.size),
    )


def _stored_bytes(dtype: str, values: int) -> int:
    """What a checkpoint takes for so many values; `dtype` may be one of GGUF's block types."""
    if dtype in VALUE_BITS:
        return values * VALUE_BITS[dtype] // 8
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return values // block * size
