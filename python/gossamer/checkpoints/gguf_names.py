"""Where the tensors of a description lie in GGUF files, which name most of them alike for all families.

Converters split what checkpoints fuse in their own ways, turn what is stored with inputs first, and add what norms are
shifted by: what is left is the description's own tensors, some of them one behind the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from .. import arch
from ..arch.sources import Source, parts_of
from .gguf_families import Architecture

_TOP = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
}
_BLOCK = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attn_behind": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "mlp_behind": "post_ffw_norm",
    "router": "ffn_gate_inp",
    "shared_gate": "ffn_gate_inp_shexp",
}
_EXPERTS = {"experts": "exps", "shared": "shexp"}
"""Ends of the names of experts' tensors, which lie in a stack, and of those of a shared one."""
_FUSED = {"attn_qkv": ("q", "k", "v"), "ffn_up": ("gate", "up")}
"""What may lie in one tensor, in its order."""


def own_name(name: str, architecture: Architecture) -> str:
    """Returns what files of an architecture call a canonical tensor that lies alone."""
    layer, own, kind = parts_of(name)
    if layer:
        return f"blk.{layer}.{architecture.inside.get(own) or _BLOCK.get(own, own)}.{kind}"
    return f"{architecture.ends.get(own) or _TOP.get(own, own)}.{kind}"


def layout(shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that a file of an architecture has, by name.

    Args:
        shapes: Those of the canonical tensors that lie in them, by name.
        architecture: The file's.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        *others, last = _places(name, {}, architecture)
        holder, index = next((one for one in others if _part(one[0]) in architecture.fused), last)
        before = found.get(holder, (0,))[0]
        found[holder] = (before + shape[0], *shape[1:]) if index is None else (max(before, index + 1), *shape)
    return found


def unknown(names: Iterable[str], architecture: str) -> list[str]:
    """Returns those names of tensors that no file of an architecture has."""
    import gguf

    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[kind]}
    return [name for name in names if re.sub(r"^blk\.\d+\.", "blk.{bid}.", name.rpartition(".")[0]) not in known]


def sources(
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
    architecture: Architecture,
    heads: Mapping[str, int],
) -> arch.Sources:
    """Returns where those of some canonical tensors lie that a file has.

    Args:
        shapes: Their shapes by canonical name.
        stored: Shapes of the file's tensors by name.
        architecture: The file's.
        heads: Heads of the linears whose rotary pairs lie side by side, by short name.
    """
    found: arch.Sources = {}
    for name, shape in shapes.items():
        _, own, _ = parts_of(name)
        for holder, index in _places(name, stored, architecture):
            if holder not in stored:
                continue
            whole, rows = shape, None
            if index is not None:
                whole = (stored[holder][0], *shape)
            elif fused := _fused(name, holder, shapes, stored[holder]):
                whole, rows = fused
            found[name] = Source(holder, whole, index=index, rows=rows, heads=heads.get(own, 0))
            break
    return found


def _places(
    name: str, stored: Mapping[str, tuple[int, ...]], architecture: Architecture
) -> Iterator[tuple[str, int | None]]:
    """Yields what a tensor of that name may lie in, and its number there where that is a stack; the first counts."""
    layer, own, kind = parts_of(name)
    prefix = f"blk.{layer}."
    if layer and "." in own:  # of an expert
        which, *number, short = own.split(".")
        yield f"{prefix}{_BLOCK[short]}_{_EXPERTS[which]}.{kind}", int(number[0]) if number else None
        return
    side, _, head = own.rpartition("_norm_")
    if side:  # a norm of each head
        yield f"{prefix}{_BLOCK[f'{side}_norm']}.{kind}", int(head)
        return
    for holder, parts in _FUSED.items():
        if own in parts and not (holder == "ffn_up" and f"{prefix}ffn_gate.{kind}" in stored):
            yield f"{prefix}{holder}.{kind}", None
    yield own_name(name, architecture), None


def _fused(
    name: str, holder: str, shapes: Mapping[str, tuple[int, ...]], stored: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, int, int]] | None:
    """The shape of what several tensors lie in, and the rows of one; None where it lies there alone."""
    _, own, _ = parts_of(name)
    parts = _FUSED.get(_part(holder), ())
    others = [_renamed(name, own, part) for part in parts]
    if own not in parts or not all(other in shapes for other in others):
        return None
    sizes = [shapes[other][0] for other in others]
    if stored[0] != sum(sizes):
        return None
    return (sum(sizes), *shapes[name][1:]), (sum(sizes[: parts.index(own)]), shapes[name][0], sum(sizes))


def _part(holder: str) -> str:
    """What a tensor of a block is called there; "" for one of no block."""
    return holder.split(".")[2] if holder.count(".") > 2 else ""


def _renamed(name: str, own: str, other: str) -> str:
    head, _, tail = name.rpartition(own)
    return f"{head}{other}{tail}"
