"""A transformer in plain float64 numpy: what the engine is compared with, end to end.

It has the engine's block protocol (`embed`, `forward_block`, `head`, `set_weight`), so that anything that walks the
blocks of a `gossamer._core.Decoder` can walk it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.arch.spec import Alibi, Attention, Experts, Learned, Mlp, Norm, RelativeBias, Rope, Transformer

Array = NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


class ReferenceModel:
    """The model over float64 copies of its weights.

    Args:
        config: Its description.
        tensors: Weights [out, in], norm vectors and biases by canonical name, of any float dtype.
    """

    def __init__(self, config: Transformer, tensors: Mapping[str, ArrayLike]) -> None:
        self.config = config
        self.tensors: dict[str, Array] = {name: np.asarray(value, dtype=np.float64) for name, value in tensors.items()}
        self.encoder: ReferenceModel | None = None
        if config.encoder is not None:
            own = [name for name in self.tensors if name.startswith("encoder.")]
            inner = {name.removeprefix("encoder."): self.tensors[name] for name in own}
            shared = {"embed": self.tensors["embed"]} if config.encoder.embedding.shared else {}
            self.encoder = ReferenceModel(config.encoder, inner | shared)

    def set_weight(self, name: str, weight: Any) -> None:
        """Replaces one weight by an array, or by a packed weight's stored values."""
        value = weight.unpack() if hasattr(weight, "unpack") else weight
        if self.encoder is not None and name.startswith("encoder."):
            self.encoder.set_weight(name.removeprefix("encoder."), value)
        assert value.shape == self.tensors[name].shape
        self.tensors[name] = np.asarray(value, dtype=np.float64)

    def embed(self, tokens: ArrayLike, sequence_length: int = 0, types: ArrayLike | None = None) -> Array:
        """Returns [tokens, hidden] of consecutive sequences of so many tokens (0: one), all of type 0 by default."""
        way_in = self.config.embedding
        if way_in.mel:
            found = np.asarray(tokens, np.float64)  # frames
            for name, stride in (("conv1", 1), ("conv2", 2)):
                around = np.pad(found, ((1, 1), (0, 0)))
                threes = np.stack([around[:-2], around[1:-1], around[2:]], axis=-1)[::stride]
                found = ACTIVATIONS["gelu"](self._linear(name, threes.reshape(len(threes), -1)))
        else:
            found = self.tensors["embed"][np.asarray(tokens)] * way_in.scale
        if way_in.project:
            found = self._linear("embed_project", found)
        if way_in.types:
            found = found + self.tensors["types"][np.zeros(len(found), int) if types is None else np.asarray(types)]
        if way_in.positions:
            rows = way_in.positions.offset + np.arange(len(found)) % (sequence_length or max(len(found), 1))
            if isinstance(way_in.positions, Learned):
                found = found + self.tensors["positions"][rows]
            else:
                angles = rows[:, None] * np.asarray(way_in.positions.frequencies, np.float64)
                found = found + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return self._norm(found, "embed_norm", way_in.norm)

    def forward_block(
        self,
        index: int,
        hidden: ArrayLike,
        capture: Sequence[str] = (),
        sequence_length: int = 0,
        memory: ArrayLike | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Runs one block over consecutive sequences of `sequence_length` tokens (0: one sequence).

        `memory` are the states that each reads, [tokens of all memories, hidden], of one length.

        Returns:
            The block's output [tokens, hidden], and the inputs [tokens, in] of the linears named in `capture`.
        """
        x = np.asarray(hidden, dtype=np.float64)
        length = sequence_length or len(x)
        layer = f"layers.{index}"
        inputs: dict[str, Array] = {}

        block, entered = self.config.blocks[index], x
        for branch in block.branches:
            mixer, read = branch.mixer, entered if block.parallel else x
            own = f"{layer}.{mixer.name}"
            normed = self._norm(self._norm(read, f"{layer}.norm", block.norm), f"{own}_norm", branch.before)
            if isinstance(mixer, Attention):
                *readers, output = (group.linears for group in mixer.groups)
                inputs.update(dict.fromkeys(readers[0], normed))
                parts = [normed[start : start + length] for start in range(0, len(x), length)]
                read_from = parts
                if mixer.reads == "memory":
                    states = np.asarray(memory, dtype=np.float64)
                    inputs.update(dict.fromkeys(readers[1], states))
                    read_from = np.split(states, len(parts))
                mixed = [self._attention(mixer, layer, *both) for both in zip(parts, read_from, strict=True)]
                inputs[output[0]] = np.concatenate(mixed)
                given = self._linear(f"{layer}.{output[0]}", inputs[output[0]])
            elif isinstance(mixer, Mlp):
                given = self._mlp(mixer, layer, "", normed, inputs)
            else:
                given = self._experts(mixer, layer, normed, inputs)
            given = self._norm(given, f"{own}_behind", branch.behind)
            x = self._norm(x + given * branch.scale, f"{own}_after_sum", branch.after_sum)
        if block.scalar:
            x = x * self.tensors[f"{layer}.scalar"]
        return x, {name: inputs[name] for name in capture}

    def block_inputs(
        self,
        index: int,
        hidden: ArrayLike,
        capture: Sequence[str],
        sequence_length: int = 0,
        memory: ArrayLike | None = None,
    ) -> dict[str, Array]:
        """Returns the inputs that `forward_block` captures."""
        return self.forward_block(index, hidden, capture, sequence_length, memory)[1]

    def head(self, hidden: ArrayLike) -> Array:
        """Returns logits [tokens, vocab] of the last block's outputs."""
        way_out = self.config.head
        assert way_out is not None
        normed = self.normed(hidden)
        if way_out.project:
            normed = self._linear("head_project", normed)
        logits = normed @ self.tensors["embed" if self.config.tied else "head"].T * way_out.scale
        if way_out.bias:
            logits = logits + self.tensors["head.bias"]
        return logits if way_out.softcap is None else way_out.softcap * np.tanh(logits / way_out.softcap)

    def norm(self, hidden: ArrayLike) -> Array:
        """Returns what `normed` does."""
        return self.normed(hidden)

    def normed(self, hidden: ArrayLike) -> Array:
        """Returns the last block's outputs [tokens, hidden] behind the last norm."""
        return self._norm(np.asarray(hidden, dtype=np.float64), "norm", self.config.stack.norm)

    def logits(self, tokens: ArrayLike, memory: ArrayLike | None = None) -> Array:
        """Returns logits [tokens, vocab] of one sequence that starts at position 0, and reads a memory, if any."""
        return self.head(self._states(tokens, None, memory))

    def encode(self, tokens: ArrayLike, types: ArrayLike | None = None) -> Array:
        """Returns the normed states [tokens, hidden] of one input: those of the encoder where there is one beside."""
        return self.encoder.encode(tokens, types) if self.encoder else self.normed(self._states(tokens, types, None))

    def _states(self, tokens: ArrayLike, types: ArrayLike | None, memory: ArrayLike | None) -> Array:
        x = self.embed(tokens, types=types)
        for index in range(self.config.layers):
            x, _ = self.forward_block(index, x, memory=memory)
        return x

    def _norm(self, x: Array, name: str, norm: Norm | None) -> Array:
        if norm is None:
            return x
        if norm.kind == "layer":
            x = x - np.mean(x, axis=-1, keepdims=True)
        scale = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + norm.eps)
        weight, bias = self.tensors[name] if norm.weight else 1, self.tensors[f"{name}.bias"] if norm.bias else 0
        return x / scale * weight + bias

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.tensors[name].T + self.tensors.get(f"{name}.bias", 0.0)

    def _mlp(self, mlp: Mlp, layer: str, prefix: str, x: Array, inputs: dict[str, Array]) -> Array:
        """An MLP whose linears' names begin with a prefix; notes what they read."""
        inputs.update({f"{prefix}{name}": x for name in mlp.groups[0].linears})
        inner = self._linear(f"{layer}.{prefix}up", x)
        if mlp.gated:
            gate, limit = self._linear(f"{layer}.{prefix}gate", x), mlp.limit or np.inf
            gate = ACTIVATIONS[mlp.activation](np.minimum(gate, limit) * mlp.alpha) / mlp.alpha
            inner = gate * (np.clip(inner, -limit, limit) + mlp.shift)
        else:
            inner = ACTIVATIONS[mlp.activation](inner)
        inputs[f"{prefix}down"] = inner
        return self._linear(f"{layer}.{prefix}down", inner)

    def _experts(self, experts: Experts, layer: str, x: Array, inputs: dict[str, Array]) -> Array:
        routing = experts.routing
        logits = self._linear(f"{layer}.router", x)
        scores = _softmax(logits) if routing.softmax == "all" else logits
        inputs["router"] = x
        weights = np.full((len(x), experts.count + (experts.shared is not None)), -1.0)
        for token, row in enumerate(scores):
            chosen = np.argsort(-row, kind="stable")[: experts.chosen]
            mine = row[chosen] if routing.softmax == "all" else _softmax(row[chosen])
            weights[token, chosen] = (mine / mine.sum() if routing.normalized else mine) * routing.scale
        parts = [(f"experts.{index}.", experts.expert) for index in range(experts.count)]
        if experts.shared is not None:
            parts.append(("shared.", experts.shared))
            weights[:, -1] = 1.0
            if experts.shared_gate:
                inputs["shared_gate"] = x
                weights[:, -1] = 1 / (1 + np.exp(-self._linear(f"{layer}.shared_gate", x)[:, 0]))
        inputs["routing"] = weights
        total = np.zeros_like(x)
        for column, (prefix, mlp) in enumerate(parts):
            rows = weights[:, column] >= 0
            total[rows] += weights[rows, column, None] * self._mlp(mlp, layer, prefix, x[rows], inputs)
        return total

    def _attention(self, attention: Attention, layer: str, x: Array, read: Array) -> Array:
        """Grouped-query attention of one sequence over itself or a memory; returns the heads side by side."""
        tokens, own = len(x), f"{layer}.{'cross_' if attention.reads == 'memory' else ''}"
        values = "v" if attention.values == "own" else "k"
        q, k, v = (self._linear(f"{own}{name}", y) for name, y in (("q", x), ("k", read), (values, read)))
        if attention.v_norm is not None:
            heads = v.reshape(len(v), attention.kv_heads, -1)
            v = self._norm(heads, f"{own}v_norm", attention.v_norm).reshape(v.shape)
        if attention.qk_norm is not None:
            q, k = (self._normed_heads(attention, own, side, part) for side, part in (("q", q), ("k", k)))
        if attention.clip is not None:
            q, k, v = (np.clip(part, -attention.clip, attention.clip) for part in (q, k, v))
        q, k, v = (part.reshape(len(part), -1, attention.head_dim) for part in (q, k, v))
        if isinstance(attention.positions, Rope):
            q, k = _rotated(q, attention.positions), _rotated(k, attention.positions)
        if grown := attention.query_scale:
            q = q * (1 + grown.beta * np.log(1 + np.arange(tokens) // grown.length))[:, None, None]
        k, v = (np.repeat(a, attention.heads // attention.kv_heads, axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * attention.scale
        if attention.softcap is not None:
            scores = attention.softcap * np.tanh(scores / attention.softcap)
        back = np.arange(tokens)[:, None] - np.arange(len(read))
        if isinstance(attention.positions, Alibi):
            scores = scores - np.array(attention.positions.slopes)[:, None, None] * back
        if isinstance(bias := attention.positions, RelativeBias):
            buckets = np.asarray(bias.back)[np.clip(back, 0, len(bias.back) - 1)]
            if bias.ahead:
                behind = np.asarray(bias.ahead)[np.clip(-back, 0, len(bias.ahead) - 1)]
                buckets = np.where(back < 0, behind, buckets)
            scores = scores + self.tensors["relative_bias"][:, buckets]
        window = attention.window or len(read) + tokens
        hidden = (back < 0) | (back >= window) if attention.causal else abs(back) >= window
        scores[:, hidden] = -np.inf
        if attention.sinks:
            sinks = np.broadcast_to(self.tensors[f"{own}sinks"][:, None, None], (attention.heads, tokens, 1))
            scores = np.concatenate([scores, sinks], axis=-1)
        return np.einsum("hqk,khd->qhd", _softmax(scores)[..., : len(read)], v).reshape(tokens, -1)

    def _normed_heads(self, attention: Attention, own: str, side: str, x: Array) -> Array:
        """Queries or keys [tokens, heads * head_dim] normed, by head or by row."""
        norms = attention.qk_norm
        assert norms is not None
        if norms.over == "row":
            return self._norm(x, f"{own}{side}_norm", norms.norm)
        heads = np.split(x, x.shape[1] // attention.head_dim, axis=1)
        names = (f"{own}{side}_norm_{head}" if norms.own else f"{own}{side}_norm" for head in range(len(heads)))
        return np.concatenate([self._norm(h, name, norms.norm) for h, name in zip(heads, names, strict=True)], axis=1)


def _softmax(x: Array) -> Array:
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def _rotated(x: Array, rope: Rope) -> Array:
    """Rotates pairs of every head by position times frequency; x is [tokens, heads, head_dim]."""
    turned = 2 * len(rope.inv_freq)
    angle = np.arange(len(x))[:, None, None] * np.asarray(rope.inv_freq, dtype=np.float64)
    pairs = (np.s_[..., 0:turned:2], np.s_[..., 1:turned:2])
    if not rope.interleaved:
        pairs = (np.s_[..., : turned // 2], np.s_[..., turned // 2 : turned])
    cos, sin = np.cos(angle) * rope.scale, np.sin(angle) * rope.scale
    out = x.copy()
    out[pairs[0]] = x[pairs[0]] * cos - x[pairs[1]] * sin
    out[pairs[1]] = x[pairs[1]] * cos + x[pairs[0]] * sin
    return out


def random_tensors(config: Transformer, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Returns seeded float32 weights and vectors for a description, scaled so that activations stay of order one."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in config.tensors.items():
        values = rng.standard_normal(shape)
        if len(shape) == 2:
            tensors[name] = (values if name == "embed" else values / np.sqrt(shape[1])).astype(np.float32)
        else:
            tensors[name] = ((0.0 if name.endswith(".bias") else 1.0) + 0.1 * values).astype(np.float32)
    return tensors
