"""From a packed model to one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arch.spec import Attention
from ..errors import GossamerError
from ..folders import called
from ..formats import INTEGER_TYPES
from ..machine.threads import usable_threads
from .model import Model

if TYPE_CHECKING:
    from ..arch.spec import Transformer
    from ..packing.folder import PackedModel

# Tiers that multiply pairs of bf16.
PAIRED = ("avx512_bf16", "amx")


def ready(
    packed: PackedModel,
    *,
    device: str = "cpu",
    threads: int = 0,
    kv: str = "f32",
    activations: str = "auto",
    kv_limit: int = 0,
) -> Model:
    """Sets a packed model up to run; options as for `load`.

    Raises:
        GossamerError: an option is not usable, or the weights do not fit together.
    """
    from .. import _core

    if device == "cuda":
        return _on_gpu(packed, activations)
    threads = usable_threads(threads)
    kv = chosen_kv(kv, packed, activations)
    try:
        decoder = _core.Decoder(
            packed.config.to_dict(),
            packed.weights,
            packed.vectors,
            threads=threads,
            kv=kv,
            activations=activations,
            kv_limit=kv_limit,
        )
    except (ValueError, RuntimeError) as error:  # the latter where the system gives no more threads
        raise GossamerError(f"{called(packed.info)}: {error}") from None
    return Model(decoder, packed.config, packed.tokenizer, packed.info, packed.weights, vectors=packed.vectors)


def chosen_kv(kv: str, packed: PackedModel, activations: str) -> str:
    """Returns the type of cached keys and values that `kv`, which may be auto, stands for with a model."""
    from .. import _core

    if kv != "auto":
        return kv
    rounded = activations in ("auto", "a8") and all(weight.type in INTEGER_TYPES for weight in packed.weights.values())
    if not rounded:
        return "f32"
    if _core.isa() in PAIRED:
        return "bf16"
    weights = sum(weight.nbytes for name, weight in packed.weights.items() if name != "embed" or packed.config.tied)
    return "f16" if _core.isa() != "scalar" and cache_bytes(packed.config) > weights else "f32"


def cache_bytes(config: Transformer) -> int:
    """Returns the bytes of float32 keys and values that a token reads where the context is full."""
    read = 0
    for block in config.stack:
        for branch in block.branches:
            mixer = branch.mixer
            if isinstance(mixer, Attention) and mixer.reads == "self":
                positions = min(mixer.window or config.context, config.context)
                read += positions * 2 * mixer.kv_heads * mixer.head_dim * 4
    return read


def _on_gpu(packed: PackedModel, activations: str) -> Model:
    import torch

    from ..nn import engine

    dtype = torch.bfloat16 if activations == "bf16" else None
    try:
        decoder = engine.Engine(packed.config, packed.weights, packed.vectors, "cuda", dtype=dtype)
    except GossamerError as error:
        raise GossamerError(f"{called(packed.info)}: {error}") from None
    return Model(decoder, packed.config, packed.tokenizer, packed.info, packed.weights, device="cuda")
