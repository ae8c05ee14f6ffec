"""Families whose MLPs are experts: those have what one without has, and these in the place of its MLPs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from .fields import integer
from .relatives import by_layer
from .sources import Source, parts_of
from .spec import MOST_LAYERS, Block, Experts, Mlp, Transformer
from .spec.experts import MOST_EXPERTS

_MOST_IN_ALL = 1 << 16  # so that a config alone takes little memory

Place = Callable[[str, str, tuple[int, ...]], Source]
"""(what is before a layer's names, short name with "weight" or "bias" behind a dot, shape) -> where it lies."""


def counts(config: dict[str, Any], count: str, chosen: str, defaults: tuple[int, int]) -> tuple[int, int]:
    """Returns how many experts there are, and how many a token goes through.

    Args:
        config: Content of config.json.
        count: The key of the first.
        chosen: Of the other.
        defaults: What they are where they are missing.

    Raises:
        GossamerError: one is out of range.
    """
    experts = integer(config, count, defaults[0], most=MOST_EXPERTS)
    few = integer(config, chosen, defaults[1], most=MOST_EXPERTS)
    if (all_of_them := experts * integer(config, "num_hidden_layers", most=MOST_LAYERS)) > _MOST_IN_ALL:
        raise GossamerError(f"{count} is {experts}, which makes {all_of_them} in all layers, more than {_MOST_IN_ALL}")
    if few > experts:
        raise GossamerError(f"{chosen} is {few}, more than the {experts} of {count}")
    return experts, few


def with_experts(dense: Transformer, experts: Experts, layers: Collection[int] | None = None) -> Transformer:
    """Returns a transformer with experts in place of its MLPs.

    Args:
        dense: The transformer.
        experts: What takes the place of each MLP.
        layers: In which layers; None for all.
    """

    def changed(layer: int, block: Block) -> Block:
        if layers is not None and layer not in layers:
            return block
        branches = (replace(one, mixer=experts) if isinstance(one.mixer, Mlp) else one for one in block.branches)
        return replace(block, branches=tuple(branches))

    kinds, which = by_layer([changed(layer, block) for layer, block in enumerate(dense.blocks)])
    return replace(dense, stack=replace(dense.stack, kinds=kinds, layers=which))


def expert_sources(
    dense: dict[str, Source], experts: Experts, hidden: int, place: Place, layers: Collection[int] | None = None
) -> dict[str, Source]:
    """Returns where the tensors of such a transformer lie.

    Args:
        dense: Where those of the one with MLPs would lie.
        experts: What takes the place of each MLP.
        hidden: Width of the stream.
        place: Says where a tensor of the experts lies.
        layers: In which layers; None for all.
    """
    found: dict[str, Source] = {}
    linears = experts.exact(hidden) | experts.linears(hidden)
    for name, source in dense.items():
        layer, own, _ = parts_of(name)
        if not layer or own not in ("gate", "up", "down") or (layers is not None and int(layer) not in layers):
            found[name] = source
            continue
        canonical = f"layers.{layer}."
        if canonical + next(iter(linears)) in found:
            continue
        before = source.tensor[: source.tensor.index(f".{layer}.") + len(layer) + 2]
        for short, linear in linears.items():
            found[canonical + short] = place(before, f"{short}.weight", (linear.rows, linear.cols))
            if linear.bias:
                found[f"{canonical}{short}.bias"] = place(before, f"{short}.bias", (linear.rows,))
    return found
