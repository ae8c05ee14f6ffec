"""Small decoders whose layers have windows."""

from __future__ import annotations

from dataclasses import replace

from engine_cases import config, described, tensors
from gossamer import _core
from gossamer.arch.relatives import each_attention

CONTEXT = 2000


def windowed_decoder(*windows: int | None, kv: str = "f32", kv_limit: int = 0) -> _core.Decoder:
    """A layer for each window; None is all positions."""
    c = replace(config(), layers=len(windows), context=CONTEXT)
    spec = each_attention(described(c, False), lambda layer, attention: replace(attention, window=windows[layer]))
    weights, vectors = tensors(c)
    packed = {name: _core.pack(values, "dense", "f32") for name, values in weights.items()}
    return _core.Decoder(spec.to_dict(), packed, vectors, kv=kv, kv_limit=kv_limit, threads=2)
