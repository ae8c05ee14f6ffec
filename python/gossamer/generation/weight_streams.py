"""What the weights are made of that a token reads: values, which places they have, and scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine import Mix
    from .model import Model


def weight_bytes_by_stream(model: Model, mix: Mix) -> dict[str, float]:
    """Returns the bytes of weights that a token reads.

    Args:
        model: The model.
        mix: Its adapters.

    Returns:
        "values", "indices" (masks, columns, and what else says where values are), "scales" and "adapters", no part
        empty; nothing of a model whose weights are not at hand.
    """
    if not model.weights:
        return {}
    adapters = float(model.adapters.bytes(mix)) if mix else 0.0
    return {part: size for part, size in (model._weight_streams | {"adapters": adapters}).items() if size >= 1}


def told(streams: Mapping[str, float]) -> str:
    """Returns in brackets what weights have beside values, in 1e6 bytes; an empty text where that is nothing."""
    parts = [f"{size / 1e6:.1f} {part}" for part, size in streams.items() if part != "values"]
    return f" ({', '.join(parts)})" if parts else ""


def weight_bytes(model: Model, mix: Mix) -> int:
    """Returns the bytes of weights that a token reads, those of its adapters included."""
    return model.decoder.weight_bytes + (model.adapters.bytes(mix) if mix else 0)


def own_streams(model: Model) -> dict[str, float]:
    """Returns what `weight_bytes_by_stream` does of a model without adapters, empty parts too; `Model` keeps it."""
    ends = ("head" if "head" in model.weights else "embed", "head_project")
    found = {"indices": 0.0, "scales": 0.0}
    for name, weight in model.weights.items():
        share = model.config.share(name) if name.startswith("layers.") or name in ends else 0.0
        if share:
            for stream, values in weight.streams().items():
                if stream != "values":
                    found["scales" if stream == "scales" else "indices"] += share * values.nbytes
    return {"values": model.decoder.weight_bytes - sum(found.values()), **found}
