"""What a block computes between its linears, chosen when it is built: by torch's functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..arch import spec
from ..errors import GossamerError
from . import functions
from .check import choose, expect
from .memory import Step

AddNorm = Callable[..., tuple[Tensor, Tensor]]
"""(states, update or None, vectors of the norm...) -> states + update, and that normed; states may be written to."""
Between = Callable[[Sequence[Tensor], Step], Tensor]
"""(outputs of the linears that read the stream, step) -> inputs of the one that adds to it."""
Route = Callable[[Sequence[Tensor], Step], tuple[Tensor, Tensor]]
"""(outputs of the router and what is beside it [n, ...], step) -> weights and columns of what each token goes through,
[n, m] both."""


class Ops(Protocol):
    """What computes between linears. Every method refuses what it does not know by name."""

    def norm(self, described: spec.Norm) -> AddNorm:
        """Returns what adds and norms."""

    def attention(
        self, described: spec.Attention, slot: int, angles: int | None, modules: Mapping[str, nn.Module]
    ) -> Between:
        """Returns what is between q, k, v and o.

        Args:
            described: The attention.
            slot: Its number in memory.
            angles: Number of its rotary positions among those of a step; None for none.
            modules: Its norms "q_norm", "k_norm", "v_norm", its "sinks", "slopes" and "relative", where it has them.
        """

    def crossing(self, described: spec.Attention) -> Between:
        """Returns what is between q, k, v and o where keys and values are of an encoder's states."""

    def mlp(self, described: spec.Mlp) -> Between:
        """Returns what is between gate, up and down."""

    def routing(self, described: spec.Experts) -> Route:
        """Returns what tells tokens their experts, and the shared one, whose column is behind theirs."""


def attention_scale(described: spec.Attention) -> float:
    """Returns the factor on products of queries and keys, of which the description has a float32 value.

    Where that is 1 / sqrt(head_dim) but for its rounding, it is taken in full: kernels round it themselves.
    """
    exact = 1.0 / math.sqrt(described.head_dim)
    return exact if abs(described.scale / exact - 1) < 1e-6 else described.scale


class TorchOps:
    """`Ops` by torch, on any device, with gradients."""

    def norm(self, described: spec.Norm) -> AddNorm:
        """See `Ops`."""
        function, eps = choose(functions.NORMS, described, "kind"), described.eps
        expect(described, "kind", *signature(function).parameters)

        def add_norm(states: Tensor, update: Tensor | None, *vectors: Tensor) -> tuple[Tensor, Tensor]:
            states = states if update is None else states + update
            return states, function(states, *vectors, eps=eps)

        return add_norm

    def attention(
        self, described: spec.Attention, slot: int, angles: int | None, modules: Mapping[str, nn.Module]
    ) -> Between:
        """See `Ops`."""
        expect(
            described, "heads", "kv_heads", "head_dim", "scale", "positions", "biases", "window", "softcap", "clip",
            "qk_norm", "sinks", "query_scale", "causal", "values", "v_norm",
        )  # fmt: skip
        if described.window is not None and not described.causal:
            raise GossamerError(
                f"attention: window {described.window} on both sides is nothing that torch decoders know"
            )
        counts = (described.heads, described.kv_heads, described.kv_heads)
        sizes = [counts["qkv".index(name)] * described.head_dim for name in described.groups[0].linears]
        scores = functions.Scores(attention_scale(described), described.window, described.softcap)
        interleaved = isinstance(described.positions, spec.Rope) and described.positions.interleaved
        rotate = functions.rotate_pairs if interleaved else functions.rotate
        prepare, shift = _prepared(described, modules), _shifted(scores, modules)

        def attend(outputs: Sequence[Tensor], step: Step) -> Tensor:
            parts = prepare(functions.apart(outputs, sizes), step)
            q, k, v = (functions.split_heads(part, count) for part, count in zip(parts, counts, strict=True))
            if angles is not None:
                q, k = rotate(q, *step.angles[angles]), rotate(k, *step.angles[angles])
            return functions.merge_heads(step.memory.attend(slot, q, k, v, shift(q.shape[-2])))

        return attend

    def crossing(self, described: spec.Attention) -> Between:
        """See `Ops`."""
        expect(described, "heads", "kv_heads", "head_dim", "scale", "positions", "biases", "causal", "reads")
        counts = (described.heads, described.kv_heads, described.kv_heads)
        sizes, scores = (
            [count * described.head_dim for count in counts[1:]],
            functions.Scores(attention_scale(described)),
        )

        def attend(outputs: Sequence[Tensor], step: Step) -> Tensor:
            assert step.read is not None
            parts = (outputs[0], *functions.apart(outputs[1:], sizes))
            q, k, v = (functions.split_heads(part, count) for part, count in zip(parts, counts, strict=True))
            return functions.merge_heads(step.read.attend(q, k, v, scores))

        return attend

    def mlp(self, described: spec.Mlp) -> Between:
        """See `Ops`."""
        _, *names = signature(functions.mlp).parameters
        expect(described, "biases", *names)
        choose(functions.ACTIVATIONS, described, "activation")
        own = {name: getattr(described, name) for name in names}
        return lambda outputs, _: functions.mlp(outputs, **own)

    def routing(self, described: spec.Experts) -> Route:
        """See `Ops`."""
        routing = described.routing
        expect(routing, "softmax", "normalized", "bias", "scale")
        sizes = (described.count, 1) if described.shared_gate else (described.count,)
        choice = {"all": functions.likeliest, "chosen": functions.largest}
        weigh = choose(choice, routing, "softmax")

        def route(outputs: Sequence[Tensor], _: Step) -> tuple[Tensor, Tensor]:
            logits, *gate = functions.apart(outputs, sizes)
            weights, experts = weigh(logits, described.chosen)
            if routing.normalized:
                weights = weights / weights.sum(-1, keepdim=True)
            weights = weights * routing.scale
            if described.shared is None:
                return weights, experts
            shared = gate[0].float().sigmoid() if gate else torch.ones_like(weights[:, :1])
            column = torch.full_like(experts[:, :1], described.count)
            return torch.cat([weights, shared], dim=-1), torch.cat([experts, column], dim=-1)

        return route


def _prepared(
    described: spec.Attention, modules: Mapping[str, nn.Module]
) -> Callable[[Sequence[Tensor], Step], Sequence[Tensor]]:
    """What becomes of q, k and v [..., n, heads * width] before they are rotated."""
    norm, clip, scale = described.qk_norm, described.clip, described.query_scale
    v_norm = modules.get("v_norm")
    if scale is not None:
        expect(scale, "beta", "length")

    def normed(side: str, x: Tensor, heads: int) -> Tensor:
        assert norm is not None
        own = [modules[name] for name in norm.norms(side, heads, described.head_dim)]
        if norm.over == "row":
            return cast("Tensor", own[0](x))
        parts = x.unflatten(-1, (heads, -1))
        if norm.own:
            return torch.cat([one(part) for one, part in zip(own, parts.unbind(-2), strict=True)], dim=-1)
        return cast("Tensor", own[0](parts)).flatten(-2)

    def prepare(parts: Sequence[Tensor], step: Step) -> Sequence[Tensor]:
        q, k, v = parts if described.values == "own" else (*parts, parts[1])
        if v_norm is not None:
            v = v_norm(v.unflatten(-1, (described.kv_heads, -1))).flatten(-2)
        if norm is not None:
            q, k = normed("q", q, described.heads), normed("k", k, described.kv_heads)
        if clip is not None:
            q, k, v = (part.clamp(-clip, clip) for part in (q, k, v))
        if scale is not None:
            q = (q * functions.query_scale(step.positions, scale.beta, scale.length)[..., None]).to(q.dtype)
        return q, k, v

    return prepare


def _shifted(scores: functions.Scores, modules: Mapping[str, nn.Module]) -> Callable[[int], functions.Scores]:
    """Scores with what modules have when a step of so many tokens runs."""
    slopes, sinks, relative = (modules.get(name) for name in ("slopes", "sinks", "relative"))
    if slopes is None and sinks is None and relative is None:
        return lambda _: scores

    def shifted(count: int) -> functions.Scores:
        return replace(
            scores,
            slopes=getattr(slopes, "slopes", None),
            sinks=getattr(sinks, "weight", None),
            relative=None if relative is None else relative(count),
        )

    return shifted
