"""A Llama-family decoder in plain float64 numpy: what the engine is compared with, end to end.

It has the engine's block protocol (`embed`, `forward_block`, `head`, `set_weight`), so that anything that walks the
blocks of a `gossamer._core.Decoder` can walk it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.arch.spec import DecoderConfig

Array = NDArray[np.float64]


class ReferenceModel:
    """The decoder over float64 copies of its weights.

    Args:
        config: The decoder.
        tensors: Weights [out, in], norm vectors and biases by canonical name, of any float dtype.
    """

    def __init__(self, config: DecoderConfig, tensors: Mapping[str, ArrayLike]) -> None:
        self.config = config
        self.tensors: dict[str, Array] = {name: np.asarray(value, dtype=np.float64) for name, value in tensors.items()}

    def set_weight(self, name: str, weight: Any) -> None:
        """Replaces one weight by an array, or by a packed weight's stored values."""
        value = weight.unpack() if hasattr(weight, "unpack") else weight
        assert value.shape == self.tensors[name].shape
        self.tensors[name] = np.asarray(value, dtype=np.float64)

    def embed(self, tokens: ArrayLike) -> Array:
        """Returns [tokens, hidden]."""
        return self.tensors["embed"][np.asarray(tokens)]

    def forward_block(
        self, index: int, hidden: ArrayLike, capture: Sequence[str] = (), sequence_length: int = 0
    ) -> tuple[Array, dict[str, Array]]:
        """Runs one block over consecutive sequences of `sequence_length` tokens (0: one sequence).

        Returns:
            The block's output [tokens, hidden], and the inputs [tokens, in] of the linears named in `capture`.
        """
        x = np.asarray(hidden, dtype=np.float64)
        length = sequence_length or len(x)
        layer = f"layers.{index}"
        inputs: dict[str, Array] = {}

        normed = self._norm(x, f"{layer}.attn_norm")
        inputs.update(q=normed, k=normed, v=normed)
        inputs["o"] = np.concatenate(
            [self._attention(layer, normed[start : start + length]) for start in range(0, len(x), length)]
        )
        x = x + self._linear(f"{layer}.o", inputs["o"])

        normed = self._norm(x, f"{layer}.mlp_norm")
        inputs.update(gate=normed, up=normed)
        gate = self._linear(f"{layer}.gate", normed)
        inputs["down"] = gate / (1 + np.exp(-gate)) * self._linear(f"{layer}.up", normed)
        x = x + self._linear(f"{layer}.down", inputs["down"])
        return x, {name: inputs[name] for name in capture}

    def block_inputs(
        self, index: int, hidden: ArrayLike, capture: Sequence[str], sequence_length: int = 0
    ) -> dict[str, Array]:
        """Returns the inputs that `forward_block` captures."""
        return self.forward_block(index, hidden, capture, sequence_length)[1]

    def head(self, hidden: ArrayLike) -> Array:
        """Returns logits [tokens, vocab] of the last block's outputs."""
        normed = self._norm(np.asarray(hidden, dtype=np.float64), "norm")
        return normed @ self.tensors["embed" if self.config.tied else "head"].T

    def logits(self, tokens: ArrayLike) -> Array:
        """Returns logits [tokens, vocab] of one sequence that starts at position 0."""
        x = self.embed(tokens)
        for index in range(self.config.layers):
            x, _ = self.forward_block(index, x)
        return self.head(x)

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + self.config.norm_eps)
        return x / scale * self.tensors[name]

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.tensors[name].T + self.tensors.get(f"{name}.bias", 0.0)

    def _attention(self, layer: str, x: Array) -> Array:
        """Causal grouped-query attention over one sequence; returns the heads side by side."""
        config = self.config
        tokens = len(x)
        shape = (tokens, -1, config.head_dim)
        q = self._rotate(self._linear(f"{layer}.q", x).reshape(shape))
        k = self._rotate(self._linear(f"{layer}.k", x).reshape(shape))
        v = self._linear(f"{layer}.v", x).reshape(shape)
        k, v = (np.repeat(a, config.heads // config.kv_heads, axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(config.head_dim)
        scores[:, np.triu(np.ones((tokens, tokens), dtype=bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, -1)

    def _rotate(self, x: Array) -> Array:
        """Rotates pairs (j, j + rotary/2) of every head by position times frequency; x is [tokens, heads, head_dim]."""
        half = len(self.config.inv_freq)
        angle = np.arange(len(x))[:, None, None] * np.asarray(self.config.inv_freq, dtype=np.float64)
        cos, sin = np.cos(angle) * self.config.rope_scale, np.sin(angle) * self.config.rope_scale
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def random_tensors(config: DecoderConfig, seed: int = 0, biases: Sequence[str] = ()) -> dict[str, NDArray[np.float32]]:
    """Returns seeded float32 weights and vectors for a config, scaled so that activations stay of order one.

    Args:
        config: The decoder.
        seed: Of the generator.
        biases: Linears, by their short names, that get a bias.
    """
    rng = np.random.default_rng(seed)
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = {"q": (q, config.hidden), "k": (kv, config.hidden), "v": (kv, config.hidden), "o": (config.hidden, q)}
    shapes |= dict.fromkeys(("gate", "up"), (config.intermediate, config.hidden))
    shapes["down"] = (config.hidden, config.intermediate)

    def matrix(shape: tuple[int, int]) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)

    def vector(size: int, mean: float) -> NDArray[np.float32]:
        return (mean + 0.1 * rng.standard_normal(size)).astype(np.float32)

    tensors = {"embed": rng.standard_normal((config.vocab, config.hidden)).astype(np.float32)}
    for index in range(config.layers):
        for name, shape in shapes.items():
            tensors[f"layers.{index}.{name}"] = matrix(shape)
            if name in biases:
                tensors[f"layers.{index}.{name}.bias"] = vector(shape[0], 0.0)
        for name in ("attn_norm", "mlp_norm"):
            tensors[f"layers.{index}.{name}"] = vector(config.hidden, 1.0)
    tensors["norm"] = vector(config.hidden, 1.0)
    if not config.tied:
        tensors["head"] = matrix((config.vocab, config.hidden))
    return tensors
