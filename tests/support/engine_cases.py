"""Small seeded models for the engine: their description, weights and the logits that the reference gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import reference
from gossamer import _core
from gossamer.arch.llama import Sizes
from gossamer.arch.spec import Transformer
from reference_model import ReferenceModel

VOCAB = 150

FORMAT_OF = {"embed": "dense", "head": "dense"}


def config(**changes: Any) -> Sizes:
    base = Sizes(
        hidden=72,
        layers=2,
        heads=6,
        kv_heads=2,
        head_dim=24,
        intermediate=100,
        vocab=VOCAB,
        context=1400,
        norm_eps=1e-5,
        inv_freq=(),
    )
    chosen = replace(base, **changes)
    if chosen.inv_freq:
        return chosen
    steps = np.arange(0, chosen.head_dim - chosen.head_dim % 2, 2, dtype=np.float64)
    return replace(chosen, inv_freq=tuple(float(np.float32(10000.0**-s)) for s in steps / chosen.head_dim))


def described(c: Sizes, biases: bool) -> Transformer:
    return replace(c, biases=("q", "k", "v", "o", "gate", "up", "down") if biases else ()).describe()


def shapes(c: Sizes) -> dict[str, tuple[int, int]]:
    return c.describe().weights


def tensors(c: Sizes, biases: bool = False) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seeded weights, half of them zero in the blocks, and vectors."""
    rng = np.random.default_rng(7)
    weights = {}
    for name, shape in shapes(c).items():
        plain = name == "embed" and not c.tied  # a head keeps logits of order 1
        values = rng.standard_normal(shape) / (1 if plain else np.sqrt(shape[1]))
        if name not in FORMAT_OF:
            values = reference.prune_nm(values, 2, 4)
        weights[name] = values.astype(np.float32)
    vectors = {"norm": rng.random(c.hidden) + 0.5}
    for i in range(c.layers):
        vectors[f"layers.{i}.attn_norm"] = rng.random(c.hidden) + 0.5
        vectors[f"layers.{i}.mlp_norm"] = rng.random(c.hidden) + 0.5
    if biases:
        for name, shape in shapes(c).items():
            if name not in FORMAT_OF:
                vectors[f"{name}.bias"] = rng.standard_normal(shape[0]) * 0.1
    return weights, {name: value.astype(np.float32) for name, value in vectors.items()}


def decoders_with_an_infinite_token(c: Sizes, token: int, **options: Any) -> tuple[_core.Decoder, _core.Decoder]:
    """Two of the same weights, whose embedding of one token is infinite."""
    weights, vectors = tensors(c)
    weights["embed"][token] = np.inf
    packed = {name: _core.pack(values, "dense", "f32") for name, values in weights.items()}
    document = described(c, False).to_dict()
    return _core.Decoder(document, packed, vectors, **options), _core.Decoder(document, packed, vectors, **options)


def decoder(c: Sizes, format: str = "bitmap", type: str = "f32", biases: bool = False, **options: Any) -> _core.Decoder:
    weights, vectors = tensors(c, biases)
    packed = {}
    for name, values in weights.items():
        form = FORMAT_OF.get(name, format)
        packed[name] = _core.pack(values, form, type, 64, (2, 4) if form == "nm" else None)
    return _core.Decoder(described(c, biases).to_dict(), packed, vectors, **options)


def reference_logits(c: Sizes, tokens: np.ndarray, biases: bool = False) -> np.ndarray:
    weights, vectors = tensors(c, biases)
    model = ReferenceModel(described(c, biases), {**weights, **vectors})
    hidden = model.embed(tokens)
    for i in range(c.layers):
        hidden, _ = model.forward_block(i, hidden)
    return model.head(hidden)


def tokens(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype(np.int32)
