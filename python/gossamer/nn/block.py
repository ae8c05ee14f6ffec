"""A block of a transformer, built from its description and three strategies: linears, memory and ops.

This is the one forward that training, sampling and decoding on GPUs have. It asks for no family: what a part of the
description is computed by is looked up when a block is built.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..arch import spec
from ..arch.spec import Linear, Transformer
from .build import Build, Norm, Vector
from .check import choose, expect
from .functions import softcap
from .linears import Linears, Projection, way_out
from .memory import Memory, Read, Step
from .mixers import MIXERS, Mixer
from .ops import Ops
from .positions import Relative, added


class Stream:
    """The residual stream: hidden states, and updates that wait so that sum and norm are one."""

    def __init__(self, states: Tensor) -> None:
        """Begins with states [..., hidden], which may be written to where ops do that."""
        self._states, self._waiting = states, list[Tensor]()

    def add(self, update: Tensor) -> None:
        """Adds an update [..., hidden]."""
        self._waiting.append(update)

    def read(self, norm: Norm | None) -> Tensor:
        """Returns the states, normed where there is a norm."""
        if norm is None:
            return self.settled()
        last = self._waiting.pop() if self._waiting else None
        self._states, normed = norm.add(self.settled(), last)
        return normed

    def normalize(self, norm: Norm) -> None:
        """Makes the states what a norm of them gives."""
        self._states = self.read(norm)

    def scale(self, factor: Tensor) -> None:
        """Multiplies the states by a number, a tensor of one element."""
        states = self.settled()
        self._states = (states * factor).to(states.dtype)

    def settled(self) -> Tensor:
        """Returns the states with everything added."""
        for update in self._waiting:
            self._states = self._states + update
        self._waiting.clear()
        return self._states


class Branch:
    """A mixer, what it reads the stream through, and what becomes of what it gives.

    Attributes:
        norms: Its norms by short name.
        before: Norm of what it reads.
        mixer: What is computed; a block builds all norms first, and then the mixers.
    """

    mixer: Mixer

    def __init__(self, described: spec.Branch, prefix: str, build: Build) -> None:
        """Builds the norms."""
        expect(described, "mixer", "before", "behind", "after_sum", "scale")
        choose(MIXERS, described, "mixer")
        self.norms = {name: Norm(norm, prefix + name, build) for name, norm in described.norms.items()}
        own = described.mixer.name
        self.before = self.norms.get(f"{own}_norm")
        self._behind, self._after_sum = self.norms.get(f"{own}_behind"), self.norms.get(f"{own}_after_sum")
        self._scale = described.scale

    def run(self, x: Tensor, stream: Stream, step: Step) -> None:
        """Adds to the stream what the mixer gives for what was read [..., hidden]."""
        update = self.mixer(x, step)
        if self._behind is not None:
            update = self._behind(update)
        stream.add(update if self._scale == 1 else update * self._scale)
        if self._after_sum is not None:
            stream.normalize(self._after_sum)


class Block(nn.Module):
    """Branches that read the stream and add to it.

    Attributes:
        projections: Its linears by their short names, groups in the order of the computation.
    """

    def __init__(self, described: spec.Block, prefix: str, build: Build) -> None:
        """Builds a block from its description.

        Args:
            described: The block.
            prefix: Before its tensors' canonical names, "layers.3.".
            build: What of.

        Raises:
            GossamerError: it has something that there is not; the line names it.
        """
        super().__init__()
        expect(described, "branches", "parallel", "norm", "scalar")
        self.norm = Norm(described.norm, prefix + "norm", build) if described.norm else None
        branches = [Branch(branch, prefix, build) for branch in described.branches]
        for branch in branches:
            for name, norm in branch.norms.items():
                self.add_module(name, norm)
        for branch, each in zip(branches, described.branches, strict=True):
            branch.mixer = MIXERS[each.mixer.part](each.mixer, prefix, build)
        self.projections = {names: one for branch in branches for names, one in branch.mixer.projections.items()}
        for projection in self.projections.values():
            for name, module in projection.modules.items():
                _adopt(self, name, module)
        for branch in branches:
            for name, module in branch.mixer.modules.items():
                _adopt(self, name, module)
        self.scalar = Vector(prefix + "scalar", 1, build) if described.scalar else None
        self._rounds = [branches] if described.parallel else [[branch] for branch in branches]

    def run(self, stream: Stream, step: Step) -> None:
        """Lets every branch read the stream and add to it; those of one round read it as it came in."""
        for branches in self._rounds:
            shared = None if self.norm is None else stream.read(self.norm)
            read = [stream.read(branch.before) if shared is None else shared for branch in branches]
            for x, branch in zip(read, branches, strict=True):
                branch.run(x, stream, step)
        if self.scalar is not None:
            stream.scale(self.scalar.weight)

    def forward(self, states: Tensor, step: Step) -> Tensor:
        """Returns the states [..., hidden] behind the block."""
        stream = Stream(states)
        self.run(stream, step)
        return stream.settled()


def _adopt(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Gives a module to one that has it as its own, or to one within that: "experts.3.up"."""
    first, _, rest = name.partition(".")
    if not rest:
        parent.add_module(first, module)
        return
    if first not in dict(parent.named_children()):
        parent.add_module(first, nn.Module())
    _adopt(parent.get_submodule(first), rest, module)


Reading = Callable[[Transformer, Linears, Ops, nn.Embedding], nn.Module]
"""Builds an encoder of its description, and the embedding of the decoder that reads it."""


def relative_of(config: Transformer, build: Build) -> Relative | None:
    """Has attentions of a stack add its matrix "relative_bias", if any, and returns that."""
    mixers = (branch.mixer for block in config.stack.kinds for branch in block.branches)
    biases = (one.positions for one in mixers if isinstance(one, spec.Attention))
    described = next((one for one in biases if isinstance(one, spec.RelativeBias)), None)
    if described is not None and config.stack.relative_bias is not None:
        table = build.linears.table("relative_bias", *config.stack.relative_bias)
        build.relative = Relative(described, nn.Parameter(table.weight))
    return build.relative


class Trunk(nn.Module):
    """The way in and the blocks of a transformer, or of its encoder.

    Attributes:
        config: Its description.
        layers: The blocks.
        norm: Behind the last block.
        ends: Linears outside the blocks, by their names.
        slots: Key/value heads and widths of the attentions, in their order.
    """

    layers: nn.ModuleList
    embed: nn.Embedding | None

    def __init__(
        self,
        config: Transformer,
        embed: nn.Embedding | None,
        ends: dict[tuple[str, ...], Projection],
        relative: Relative | None,
        build: Build,
    ) -> None:
        """Builds the parts of a description that come behind the rows of the embedding.

        Args:
            config: The description.
            embed: The embedding, where it is this one's.
            ends: Linears outside the blocks that are built already, by their names.
            relative: What attentions add by distance.
            build: What of.

        Raises:
            GossamerError: it has something that there is not; the line names it.
        """
        super().__init__()
        expect(config.stack, "kinds", "layers", "norm")
        self.config = config
        if embed is not None:
            self.embed = embed
        self.ends: dict[tuple[str, ...], Projection] = {
            (name,): build.linears.group({name: Linear(*config.weights[name], False)})
            for name in ("embed_project", "head_project")
            if name in config.weights
        } | ends
        self.positions = added(config.embedding, config.hidden, build.linears)
        self.embed_norm = Norm(config.embedding.norm, "embed_norm", build) if config.embedding.norm else None
        self.layers = nn.ModuleList(
            Block(block, f"layers.{layer}.", build) for layer, block in enumerate(config.blocks)
        )
        self.norm = Norm(config.stack.norm, "norm", build) if config.stack.norm else None
        self.relative_bias = relative
        for projection in self.ends.values():
            for name, module in projection.modules.items():
                self.add_module(name, module)
        self.angles, self.slots = build.angles, tuple(build.slots)

    def begin(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Returns the stream [..., n, hidden] of rows [..., n, width] that tokens are, at their positions."""
        states = rows
        if self.config.embedding.scale != 1:
            states = states * self.config.embedding.scale
        if widen := self.ends.get(("embed_project",)):
            (states,) = widen(states)
        if self.positions is not None:
            states = states + self.positions(positions)
        return states if self.embed_norm is None else self.embed_norm(states)


class Network(Trunk):
    """A transformer from token ids to logits; attributes beside those of `Trunk`.

    Attributes:
        embed: The embedding.
    """

    embed: nn.Embedding

    def __init__(self, config: Transformer, linears: Linears, ops: Ops, reading: Reading | None = None) -> None:
        """Builds the parts of a description.

        Args:
            config: The description.
            linears: What makes projections.
            ops: What is between them.
            reading: Builds the encoder that it reads, where there is one; None knows none.

        Raises:
            GossamerError: it has something that there is not; the line names it.
        """
        expect(config, "hidden", "vocab", "context", "embedding", "stack", "head", *(["encoder"] if reading else []))
        expect(config.embedding, "positions", "scale", "project", "norm")
        expect(way_out(config), "tied", "bias", "scale", "softcap", "project")
        build = Build(config.hidden, linears, ops)
        embed, head = linears.ends(config)
        relative = relative_of(config, build) if reading else None
        super().__init__(config, embed, {("head",): head}, relative, build)
        self.encoder = reading(config.encoder, linears, ops, embed) if reading and config.encoder else None

    @property
    def projections(self) -> list[Projection]:
        """All linears, in the order of the computation."""
        blocks = (block for block in self.layers if isinstance(block, Block))
        return [*(one for block in blocks for one in block.projections.values()), *self.ends.values()]

    def step(self, memory: Memory, positions: Tensor, read: Read | None = None) -> Step:
        """Returns the step of tokens at positions [n]."""
        return Step(memory, positions, self.angles(positions), read)

    def enter(self, tokens: Tensor, step: Step) -> Tensor:
        """Returns the stream [..., n, hidden] of a step's token ids [..., n]."""
        return self.begin(self.embed(tokens), step.positions)

    def run(self, tokens: Tensor, step: Step) -> Tensor:
        """Returns normed states [..., n, hidden] of a step's token ids [..., n] behind the last block."""
        stream = Stream(self.enter(tokens, step))
        for block in self.layers:
            assert isinstance(block, Block)
            block.run(stream, step)
        return stream.read(self.norm)

    def predict(self, normed: Tensor) -> Tensor:
        """Returns logits [..., vocab] of normed states [..., hidden]."""
        head = way_out(self.config)
        if head.scale != 1:
            normed = normed * head.scale
        if narrow := self.ends.get(("head_project",)):
            (normed,) = narrow(normed)
        (logits,) = self.ends["head",](normed)
        return logits if head.softcap is None else softcap(logits, head.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., vocab] of states [..., hidden] behind the last block."""
        return self.predict(Stream(hidden).read(self.norm))
