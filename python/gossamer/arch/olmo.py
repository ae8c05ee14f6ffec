"""OLMo: Llama with layer norms that have no weights, whose queries, keys and values may be clipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import llama
from .fields import number, single
from .llama import PREFIX
from .relatives import BLOCKS, ENDS, INSIDE, no_windows
from .sources import Source, place
from .spec import Attention, Norm, Transformer

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

_NORM = Norm("layer", 1e-5, weight=False)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "clip_qkv"}


def _attention(config: dict[str, Any]) -> Callable[[int, Attention], Attention]:
    clip = None if config.get("clip_qkv") is None else single(number(config, "clip_qkv"))
    return lambda _, attention: replace(attention, clip=clip)


_KIN = llama.Kin(_plain, _attention, flags=("attention_bias",))
unread, biases = _KIN.unread, _KIN.biases


def _bare(described: Transformer) -> Transformer:
    """The same with norms that have no weights."""
    kinds = tuple(
        replace(kind, branches=tuple(replace(branch, before=_NORM) for branch in kind.branches))
        for kind in described.stack.kinds
    )
    return replace(described, stack=replace(described.stack, kinds=kinds, norm=_NORM))


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    no_windows(config)
    return _bare(_KIN.describe(config))


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(_bare(_KIN.outline(config)), ENDS, BLOCKS, INSIDE)
