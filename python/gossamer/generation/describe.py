"""A model in a line: what it is, what it takes, and what it runs with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..arch.sources import ENCODER

if TYPE_CHECKING:
    from .model import Model


def weight_kinds(model: Model) -> dict[str, int]:
    """How many matrices there are of each format and type, the head's named apart: its bytes weigh most."""
    head = "embed" if model.config.tied else "head"
    kinds: Counter[str] = Counter()
    for name, weight in model.weights.items():
        kind = f"{weight.format} {weight.type}"
        if name == head:
            kinds[f"head {kind}"] += 1
        elif "." in name.removeprefix(ENCODER):  # of tables a row is read per token, no more
            kinds[kind] += 1
    return dict(kinds)


def describe(model: Model) -> str:
    """Returns name, family, sizes, formats, zeros of the blocks' matrices, bytes, context and threads."""
    weights = model.weights
    blocks = [weight for name, weight in weights.items() if name.removeprefix(ENCODER).startswith("layers.")]
    positions = sum(weight.rows * weight.cols for weight in blocks)
    family = f" ({model.info['family']})" if "family" in model.info else ""
    parts = [f"{model.config.layers} layers"]
    if positions:
        parameters = sum(weight.rows * weight.cols for weight in weights.values())
        parts.append(f"{parameters / 1e6:.4g} million parameters")
        parts += [f"{count} {kind}" if count > 1 else kind for kind, count in weight_kinds(model).items()]
        parts.append(f"{1 - sum(weight.nnz for weight in blocks) / positions:.0%} zeros in the blocks")
        parts.append(f"{sum(weight.nbytes for weight in weights.values()) / 1e6:.1f} MB")
    parts.append(f"context {model.config.context}")
    threads = model.decoder.threads
    parts.append(f"{threads} threads" if threads else model.device)
    return f"<gossamer.Model {str(model.info.get('name', '?'))[:80]}{family}: {', '.join(parts)}>"
