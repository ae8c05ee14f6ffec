"""What branches compute, over linears: attention, MLPs, and experts of which every token goes through a few."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..arch import spec
from ..errors import GossamerError
from .build import Build, Norm, Vector
from .check import expect
from .linears import Projection
from .memory import Step
from .ops import Between
from .positions import Slopes


class Mixer(Protocol):
    """What a branch computes.

    Attributes:
        projections: Its linears by their short names, groups in the order of the computation.
        modules: What it has beside them, by short name, for the block to have as its own.
    """

    projections: dict[tuple[str, ...], Projection]
    modules: dict[str, nn.Module]

    def __call__(self, x: Tensor, step: Step, /) -> Tensor:
        """Returns what is added to the stream, for what is read [..., hidden]."""


def _projection(linears: Mapping[str, spec.Linear], names: Sequence[str], prefix: str, build: Build) -> Projection:
    """Makes linears of one group; `prefix` is before their short names."""
    for name in names:
        expect(linears[name], "rows", "cols", "bias", "share")
    return build.linears.group({prefix + name: linears[name] for name in names})


def _projections(described: spec.Mixer, prefix: str, build: Build) -> dict[tuple[str, ...], Projection]:
    """Makes all of a mixer that are pruned, by group."""
    linears = described.linears(build.hidden)
    return {group.linears: _projection(linears, group.linears, prefix, build) for group in described.groups}


class Plain:
    """A `Mixer` of linears that read, what is between, and the linear whose output joins the stream."""

    def __init__(self, described: spec.Mixer, prefix: str, build: Build) -> None:
        """Builds the linears first, so that they and vectors have the order of the description."""
        self.projections = _projections(described, prefix, build)
        self._inputs, self._output = self.projections.values()
        self.modules: dict[str, nn.Module] = {}
        self._between = _BETWEEN[described.part](described, prefix, build, self.modules)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """See `Mixer`."""
        (update,) = self._output(self._between(self._inputs(x), step))
        return update


class Crossing:
    """A `Mixer` whose queries are of the stream, and keys and values of an encoder's states."""

    def __init__(self, described: spec.Attention, prefix: str, build: Build) -> None:
        """Builds the linears."""
        self.projections = _projections(described, prefix, build)
        self._query, self._read, self._output = self.projections.values()
        self.modules: dict[str, nn.Module] = {}
        self._between = build.ops.crossing(described)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """See `Mixer`."""
        assert step.read is not None
        (update,) = self._output(self._between([*self._query(x), *self._read(step.read.states)], step))
        return update


def _attends(described: spec.Attention, prefix: str, build: Build) -> Mixer:
    return (Plain if described.reads == "self" else Crossing)(described, prefix, build)


class Experts:
    """A `Mixer` of MLPs that read the tokens that are routed to them."""

    def __init__(self, described: spec.Experts, prefix: str, build: Build) -> None:
        """Builds the router and the linears of all."""
        expect(described, "count", "chosen", "expert", "routing", "shared", "shared_gate")
        self.modules: dict[str, nn.Module] = {}
        self._route = build.ops.routing(described)
        exact = described.exact(build.hidden)
        self.projections = {tuple(exact): _projection(exact, tuple(exact), prefix, build)}
        (self._router,) = self.projections.values()
        every = _projections(described, prefix, build)
        self.projections |= every
        groups = list(every.values())
        self._parts = list(zip(groups[::2], groups[1::2], strict=True))
        self._between = [build.ops.mlp(described.expert)] * described.count
        if described.shared is not None:
            self._between.append(build.ops.mlp(described.shared))

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """See `Mixer`."""
        rows = x.flatten(0, -2)
        weights, columns = self._route(self._router(rows), step)
        total = torch.zeros_like(rows)
        for column, ((inputs, output), between) in enumerate(zip(self._parts, self._between, strict=True)):
            tokens, rank = torch.where(columns == column)
            # With gradients, experts without tokens have some as well: zeros.
            if not len(tokens) and not torch.is_grad_enabled():
                continue
            (update,) = output(between(inputs(rows[tokens]), step))
            update = update * weights[tokens, rank, None].to(update.dtype)
            total = total.index_add(0, tokens, update.to(total.dtype))
        return total.view_as(x)


def _attention(described: spec.Attention, prefix: str, build: Build, modules: dict[str, nn.Module]) -> Between:
    build.slots.append((described.kv_heads, described.head_dim))
    if (norm := described.qk_norm) is not None:
        expect(norm, "norm", "over", "own")
        for side, heads in (("q", described.heads), ("k", described.kv_heads)):
            for name, width in norm.norms(side, heads, described.head_dim).items():
                modules[name] = Norm(norm.norm, prefix + name, build, width)
    if described.v_norm is not None:
        modules["v_norm"] = Norm(described.v_norm, f"{prefix}v_norm", build, described.head_dim)
    if described.sinks:
        modules["sinks"] = Vector(f"{prefix}sinks", described.heads, build)
    angles = build.angles.number(described)
    if isinstance(described.positions, spec.Alibi):
        modules["slopes"] = Slopes(described.positions)
    if isinstance(described.positions, spec.RelativeBias):
        if build.relative is None:
            raise GossamerError("attention: positions 'relative_bias' is nothing that this decoder knows")
        return build.ops.attention(described, len(build.slots) - 1, angles, {**modules, "relative": build.relative})
    return build.ops.attention(described, len(build.slots) - 1, angles, modules)


def _mlp(described: spec.Mlp, _prefix: str, build: Build, _modules: dict[str, nn.Module]) -> Between:
    return build.ops.mlp(described)


_BETWEEN: dict[str, Callable[[Any, str, Build, dict[str, nn.Module]], Between]] = {
    "attention": _attention,
    "mlp": _mlp,
}

MIXERS: dict[str, Callable[[Any, str, Build], Mixer]] = {"attention": _attends, "mlp": Plain, "experts": Experts}
"""What builds a mixer, by its part in descriptions: told that, what is before its linears' short names, and of what."""
