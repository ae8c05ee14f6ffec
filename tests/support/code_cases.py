"""An attention whose queries, keys and values are known exactly, for what rounds keys and values to codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossamer import _core
from gossamer.arch.spec import Attention, Block, Branch, Embedding, Head, Mlp, Norm, Stack, Transformer

Floats = NDArray[np.float32]

HIDDEN, TOKENS = 96, 530
SHAPES = ((6, 2, 10), (4, 4, 64), (52, 1, 12), (3, 1, 130))  # heads, kv heads, width
TIERS = ("scalar", "avx2", "avx512", "avx512_vbmi2")


def hidden() -> Floats:
    """Inputs of the block; some positions are much larger than others, and some are zero."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((TOKENS, HIDDEN)) * np.exp(rng.standard_normal((TOKENS, 1)))
    x[::97] = 0
    return x.astype(np.float32)


def weights(shape: tuple[int, int, int]) -> dict[str, Floats]:
    """Every row takes one input, once or by half, so that no product is rounded."""
    heads, kv_heads, width = shape
    rng = np.random.default_rng(6)
    found = {}
    for name, rows in (("q", heads * width), ("k", kv_heads * width), ("v", kv_heads * width)):
        values = np.zeros((rows, HIDDEN), np.float32)
        values[np.arange(rows), rng.integers(0, HIDDEN, rows)] = rng.choice([-1, -0.5, 0.5, 1], rows)
        found[name] = values
    return found


def mixed(shape: tuple[int, int, int], kv: str) -> Floats:
    """What the attention gives, [tokens, heads * width]; scores are scaled by 1 / width."""
    heads, kv_heads, width = shape
    block = Block((Branch(Attention(heads, kv_heads, width, 1 / width, None), None), Branch(Mlp(4, "silu"), None)))
    config = Transformer(HIDDEN, 8, 1000, Embedding(), Stack((block,), (0,), Norm("rms", 1e-5)), Head(True))
    tensors = {f"layers.0.{name}": values for name, values in weights(shape).items()}
    packed = {
        name: _core.pack(tensors.get(name, np.zeros(size, np.float32)), "dense", "f32")
        for name, size in config.weights.items()
    }
    vectors = {name: np.ones(size, np.float32) for name, size in config.vectors.items()}
    decoder = _core.Decoder(config.to_dict(), packed, vectors, kv=kv, activations="f32")
    return decoder.block_inputs(0, hidden(), ["o"])["o"]
