"""Where the tensors of a description lie in GGUF files, which name them alike for all families.

Converters split what checkpoints fuse in their own ways, turn what is stored with inputs first, and add what norms are
shifted by: what is left is the description's own tensors, some of them one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from .. import arch
from ..arch.sources import Source, parts_of

_TOP = {
    "embed": "token_embd",
    "positions": "position_embd",
    "embed_norm": "token_embd_norm",
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
    "sinks": "attn_sinks",
    "attn_behind": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "mlp_behind": "post_ffw_norm",
    "norm": "attn_norm",  # of parallel branches
}
_TWO_NORMS = {"attn_norm": "attn_norm_2", "mlp_norm": "attn_norm"}
"""Norms of a parallel block with one for each branch, where a file has the first of these (Falcon)."""
_FUSED = {"attn_qkv": ("q", "k", "v"), "ffn_up": ("gate", "up")}
"""What may lie in one tensor, in its order."""


def own_name(name: str) -> str:
    """Returns what files call a canonical tensor that lies alone."""
    layer, own, kind = parts_of(name)
    return f"blk.{layer}.{_BLOCK.get(own, own)}.{kind}" if layer else f"{_TOP.get(own, own)}.{kind}"


def sources(
    shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]
) -> arch.Sources:
    """Returns where those of some canonical tensors lie that a file has.

    Args:
        shapes: Their shapes by canonical name.
        stored: Shapes of the file's tensors by name.
        heads: Heads of the linears whose rotary pairs lie side by side, by short name.
    """
    found: arch.Sources = {}
    for name, shape in shapes.items():
        layer, own, kind = parts_of(name)
        prefix = f"blk.{layer}." if layer else ""
        stem = (_BLOCK if layer else _TOP).get(own, own)
        if layer and f"{prefix}attn_norm_2.{kind}" in stored:
            stem = _TWO_NORMS.get(own, stem)
        for holder, parts in _FUSED.items() if layer else ():
            fused = f"{prefix}{holder}.{kind}"
            if own in parts and fused in stored:
                sizes = [shapes[_renamed(name, own, part)][0] for part in parts if _renamed(name, own, part) in shapes]
                if len(sizes) == len(parts) and stored[fused][0] == sum(sizes):
                    start = sum(sizes[: parts.index(own)])
                    found[name] = Source(
                        fused, (sum(sizes), *shape[1:]), rows=(start, shape[0], sum(sizes)), heads=heads.get(own, 0)
                    )
        if name not in found and (single := f"{prefix}{stem}.{kind}") in stored:
            found[name] = Source(single, shape, heads=heads.get(own, 0))
    return found


def _renamed(name: str, own: str, other: str) -> str:
    head, _, tail = name.rpartition(own)
    return f"{head}{other}{tail}"
