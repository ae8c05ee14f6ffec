"""The mathematics between a decoder's linears, a function each; norms and angles are float32 whatever comes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from .gradients import Attention, RmsNorm, Rotation, SiluGate

_MASKED = 1024  # tokens up to which a mask costs less than copies of keys and values, in training on a CPU
_FEW = 512  # keys up to which attention that keeps its weights is faster in training than torch's own
_BLOCK = 128  # queries that it takes at once, over the keys that any of them looks at


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float) -> Tensor:
    """Returns x [..., width] with rows of unit mean square, times a weight [width] (Zhang & Sennrich 2019)."""
    normed: Tensor = RmsNorm.apply(x.float(), weight, eps)  # type: ignore[no-untyped-call]
    return normed.to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Returns x [..., width] with rows of no mean and unit variance, times a weight, plus a bias (Ba et al. 2016)."""
    factor, shift = (None if vector is None else vector.float() for vector in (weight, bias))
    return functional.layer_norm(x.float(), x.shape[-1:], factor, shift, eps).to(x.dtype)


NORMS: dict[str, Callable[..., Tensor]] = {"rms": rms_norm, "layer": layer_norm}
"""By `gossamer.arch.spec.Norm.kind`; parameters have the names of the fields that are computed with."""


def gelu(x: Tensor) -> Tensor:
    """Returns x times the normal distribution's share below x (Hendrycks & Gimpel 2016)."""
    return functional.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Returns `gelu` approximated by a tanh."""
    return functional.gelu(x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """Returns x / (1 + exp(-x)) (Hendrycks & Gimpel 2016)."""
    return functional.silu(x)


def silu_gate(both: Tensor) -> Tensor:
    """Returns silu(gate) * up [..., width] for both side by side, [..., 2 width]."""
    gated: Tensor = SiluGate.apply(both)  # type: ignore[no-untyped-call]
    return gated


def relu(x: Tensor) -> Tensor:
    """Returns max(x, 0)."""
    return functional.relu(x)


def relu2(x: Tensor) -> Tensor:
    """Returns the square of max(x, 0) (So et al. 2021)."""
    return functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu2,
}
"""By `gossamer.arch.spec.Mlp.activation`."""


def clamped(gate: Tensor, up: Tensor, limit: float | None, alpha: float, shift: float) -> Tensor:
    """Returns g / (1 + exp(-alpha g)) * (u + shift), g the gate up to a limit, u within the limit and its negative."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + shift)


def mlp(
    outputs: Sequence[Tensor],
    *,
    width: int,
    activation: str,
    gated: bool,
    limit: float | None,
    alpha: float,
    shift: float,
) -> Tensor:
    """Returns activation(gate) * up [..., width], or activation(up) where nothing is gated.

    The parameters behind the first are the fields of `gossamer.arch.spec.Mlp`.

    Args:
        outputs: Gate and up, [..., width] each or side by side, or up alone.
        width: Numbers of each.
        activation: One of `ACTIVATIONS`.
        gated: Whether there is a gate.
        limit: As for `clamped`.
        alpha: As for `clamped`.
        shift: As for `clamped`.
    """
    if not gated:
        return ACTIVATIONS[activation](outputs[0])
    plain = limit is None and alpha == 1 and shift == 0
    if plain and activation == "silu" and len(outputs) == 1:
        return silu_gate(outputs[0])
    gate, up = apart(outputs, (width, width))
    return ACTIVATIONS[activation](gate) * up if plain else clamped(gate, up, limit, alpha, shift)


def softcap(x: Tensor, cap: float) -> Tensor:
    """Returns cap tanh(x / cap)."""
    return cap * torch.tanh(x / cap)


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the largest of a softmax over logits [n, m], float32, and where they are; [n, count] both."""
    values, indices = logits.float().softmax(-1).topk(count)
    return values, indices


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns a softmax over the largest of logits [n, m] alone, float32, and where they are; [n, count] both."""
    values, indices = logits.float().topk(count)
    return values.softmax(-1), indices


def rotary_angles(positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines, times a scale, of the angles by which tokens at `positions` turn.

    Args:
        positions: [..., n].
        inv_freq: Angle a position, [rotary_dim / 2].
        scale: Of the results.

    Returns:
        Two of [..., n, rotary_dim / 2], float32.
    """
    angles = positions.float()[..., None] * inv_freq.float()
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (j, j + rotary_dim / 2) of every head; what lies beyond rotary_dim stays.

    Args:
        x: [..., head_dim].
        cos: Of the angles, [..., rotary_dim / 2]; may be broadcast.
        sin: As cos.
    """
    turned: Tensor = Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (2 j, 2 j + 1) of every head; otherwise as `rotate`."""
    turned = 2 * cos.shape[-1]
    a, b = x[..., 0:turned:2].float(), x[..., 1:turned:2].float()
    pairs = torch.stack([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype)], dim=-1)
    return torch.cat([pairs.flatten(-2), x[..., turned:]], dim=-1)


@dataclass(frozen=True)
class Scores:
    """How products of queries and keys become weights; the fields are those of `gossamer.arch.spec.Attention`.

    Attributes:
        scale: Factor on the products.
        window: Positions that a query looks at.
        softcap: What the scaled products are kept within.
        slopes: Of ALiBi, [heads].
        sinks: Scores beside those of the keys, [heads].
        relative: What is added to the scaled products, [heads, n, m].
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes: Tensor | None = None
    sinks: Tensor | None = None
    relative: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether there is but a scale and a window, as torch's own function has them."""
        return all(one is None for one in (self.softcap, self.slopes, self.sinks, self.relative))


class Distances:
    """How far queries stand behind keys, computed once for all attentions of a step."""

    def __init__(self, queries: Tensor, keys: Tensor, first: Tensor | None = None) -> None:
        """Takes the positions of both, [n] and [m], and those of the first keys that queries look at, [batch, n]."""
        self._queries, self._keys, self._first = queries, keys, first
        self._seen: dict[int | None, Tensor] = {}
        self._masks: dict[tuple[int | None, int, torch.dtype], Tensor] = {}
        self._blocks: dict[int | None, list[tuple[slice, slice]]] = {}

    @cached_property
    def back(self) -> Tensor:
        """Positions from a key to a query, [n, m]."""
        return self._queries[:, None] - self._keys

    def seen(self, window: int | None) -> Tensor:
        """Returns True [batch or 1, n, m] where a query looks at a key."""
        if window not in self._seen:
            causal = self._keys <= self._queries[:, None]
            seen = causal if window is None else causal & (self.back < window)
            self._seen[window] = seen[None] if self._first is None else seen & (self._keys >= self._first[..., None])
        return self._seen[window]

    def mask(self, window: int | None, times: int, dtype: torch.dtype) -> Tensor:
        """Returns `seen` for torch's attention, [batch or 1, 1, times * n, m].

        On a CPU torch would make what it adds to scores of booleans, for each attention anew: it gets that.
        """
        key = (window, times, dtype)
        if key not in self._masks:
            seen = self.seen(window).repeat(1, times, 1)[:, None]
            if seen.device.type == "cpu":
                seen = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
            self._masks[key] = seen
        return self._masks[key]

    def blocks(self, window: int | None) -> list[tuple[slice, slice]]:
        """Returns queries by blocks, each with the keys from the first to the last that any of them looks at."""
        if window not in self._blocks:
            seen = self.seen(window).any(0)
            rows = [slice(begin, begin + _BLOCK) for begin in range(0, len(seen), _BLOCK)]
            looked = [seen[part].any(0).nonzero()[:, 0].tolist() for part in rows]
            self._blocks[window] = [
                (part, slice(keys[0], keys[-1] + 1)) for part, keys in zip(rows, looked, strict=True)
            ]
        return self._blocks[window]


class Real(Distances):
    """Keys that every query looks at, wherever it stands: all but padding."""

    def __init__(self, queries: int, real: Tensor) -> None:
        """Takes the number of queries, and False at keys that are padding, [batch, m]."""
        positions = torch.arange(max(queries, real.shape[1]), device=real.device)
        super().__init__(positions[:queries], positions[: real.shape[1]])
        self._seen[None] = real[:, None].expand(-1, queries, -1)


def _kept_here(queries: Tensor) -> bool:
    """Whether a CPU keeps what the backward pass needs."""
    return queries.requires_grad and queries.device.type == "cpu"


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, scores: Scores, distances: Distances) -> Tensor:
    """Returns attention [batch, heads, n, width] of whole sequences over themselves, with gradients.

    Args:
        queries: [batch, heads, n, width].
        keys: [batch, kv_heads, n, width].
        values: As keys.
        scores: What becomes of the products of queries and keys.
        distances: Of the sequences' positions to themselves.
    """
    length = queries.shape[-2]
    masked = length <= _MASKED and _kept_here(queries)
    if not scores.plain or (scores.window or length) < length or masked:
        return attention(queries, keys, values, scores, distances)
    shared = queries.shape[1] // keys.shape[1]
    if shared > 1:
        keys, values = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)
    return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scores.scale)


def attention(queries: Tensor, keys: Tensor, values: Tensor, scores: Scores, distances: Distances | None) -> Tensor:
    """Returns attention [batch, heads, n, width]; heads that share keys are further queries of one head, not copies.

    Args:
        queries: [batch, heads, n, width].
        keys: [batch, kv_heads, m, width].
        values: As keys.
        scores: What becomes of the products of queries and keys.
        distances: Of queries and keys; None where scores are plain and every query looks at every key.
    """
    batch, heads, count, width = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.reshape(batch, kv_heads, -1, count, width)
    if scores.plain:
        # Where nothing is trained, scores are better not rounded to bf16.
        if distances is not None and keys.shape[2] <= _FEW and _kept_here(queries):
            mask, blocks = distances.mask(scores.window, 1, torch.float32), distances.blocks(scores.window)
            mixed: Tensor = Attention.apply(grouped, keys, values, mask, scores.scale, blocks)  # type: ignore[no-untyped-call]
            return mixed.reshape(queries.shape)
        added = None if distances is None else distances.mask(scores.window, heads // kv_heads, queries.dtype)
        rows = grouped.flatten(2, 3)
        mixed = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=added, scale=scores.scale)
        return mixed.reshape(queries.shape)
    assert distances is not None
    seen = distances.seen(scores.window)
    products = (grouped @ keys[:, :, None].transpose(-1, -2)).float() * scores.scale
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    if scores.slopes is not None:
        products = products - scores.slopes.float().view(kv_heads, -1, 1, 1) * distances.back
    if scores.relative is not None:
        products = products + scores.relative.float().unflatten(0, (kv_heads, -1))
    products = products.masked_fill(~seen[:, None, None], -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(kv_heads, -1, 1, 1).expand(*products.shape[:-1], 1)
        products = torch.cat([products, sinks], dim=-1)
    weights = products.softmax(-1)[..., : keys.shape[2]].to(values.dtype)
    return (weights @ values[:, :, None]).reshape(queries.shape)


def query_scale(positions: Tensor, beta: float, length: int) -> Tensor:
    """Returns the factor on queries at positions [..., n]: 1 + beta * log(1 + floor(position / length)), float32."""
    return 1 + beta * torch.log1p(torch.floor(positions.float() / length))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Returns [..., n, heads * width] as [..., heads, n, width]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """Returns [..., heads, n, width] as [..., n, heads * width]."""
    return x.transpose(-2, -3).flatten(-2)


def apart(outputs: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
    """Returns outputs of linears one by one where some of them are one tensor side by side."""
    return outputs if len(outputs) == len(sizes) else joined(outputs).split(list(sizes), dim=-1)


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """Returns outputs of linears side by side."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=-1)
