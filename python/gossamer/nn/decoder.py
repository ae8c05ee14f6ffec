"""A decoder of plain torch modules, built from the same config and tensor map as the native one.

It is what training runs on, and any device that torch has. Parameters are called by the canonical names of
`gossamer.arch` with ".weight" behind ("layers.3.q.weight", "layers.3.q.bias"), whatever the checkpoint calls them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recompute

from .. import arch
from ..arch import spec
from ..arch.llama import Sizes
from ..arch.spec import Transformer
from ..checkpoints import Checkpoint, open_checkpoint, write_checkpoint
from ..errors import GossamerError
from .functions import rms_norm, rotary_angles, rotate

_F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
        hidden: The residual stream after each block, [batch, length, hidden] each, before the final norm.
        logits: [batch, length, vocab]; None where they were not asked for.
    """

    hidden: list[Tensor]
    logits: Tensor | None


class Norm(nn.Module):
    """RMS norm (Zhang & Sennrich 2019), computed in float32 whatever comes in."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [..., width] with rows of unit mean square, times the weight."""
        return rms_norm(x, self.weight, self.eps)


class Block(nn.Module):
    """One block: attention and gated MLP, each behind a norm, each added to the residual stream."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    def __init__(self, sizes: Sizes, block: spec.Block) -> None:
        super().__init__()
        self.heads, self.kv_heads = sizes.heads, sizes.kv_heads
        self.attn_norm = Norm(sizes.hidden, sizes.norm_eps)
        self.mlp_norm = Norm(sizes.hidden, sizes.norm_eps)
        for branch in block.branches:
            for name, linear in branch.mixer.linears(sizes.hidden).items():
                self.add_module(name, nn.Linear(linear.cols, linear.rows, bias=linear.bias))

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Runs the block.

        Args:
            hidden: [batch, length, hidden].
            cos: Cosines of the rotary angles, [length, rotary_dim / 2].
            sin: Their sines.

        Returns:
            The new hidden states, of the same shape.
        """
        x = self.attn_norm(hidden)
        q, k, v = _split(self.q(x), self.heads), _split(self.k(x), self.kv_heads), _split(self.v(x), self.kv_heads)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        shared = self.heads // self.kv_heads
        if shared > 1:
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.o(mixed.transpose(1, 2).flatten(2))
        x = self.mlp_norm(hidden)
        update: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return hidden + update


class Decoder(nn.Module):
    """A decoder-only transformer that has its whole input at once: no cache.

    Attributes:
        config: Its architecture.
    """

    inv_freq: Tensor

    def __init__(self, config: Transformer) -> None:
        """Builds the modules with weights that torch initializes; `load` fills them.

        Args:
            config: The architecture.

        Raises:
            GossamerError: the architecture has something that this module does not.
        """
        super().__init__()
        self.config, sizes = config, Sizes.of(config)
        self.embed = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Block(sizes, block) for block in config.blocks)
        self.norm = Norm(config.hidden, sizes.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.hidden, config.vocab, bias=False)
        self.register_buffer("inv_freq", torch.tensor(sizes.inv_freq), persistent=False)
        self._rope_scale = sizes.rope_scale

    def forward(self, tokens: Tensor, *, logits: bool = True, recompute_blocks: bool = False) -> Output:
        """Runs sequences from their beginning.

        A sequence that is shorter than others is padded at its end with any token: attention is causal, so no real
        token sees padding.

        Args:
            tokens: [batch, length].
            logits: Whether to compute them.
            recompute_blocks: Keep only the blocks' inputs for the backward pass and compute the rest again there (Chen
                et al. 2016).

        Returns:
            Hidden states after each block, and logits.
        """
        cos, sin = self.angles(tokens.shape[1])
        states = self.embed(tokens)
        hidden = []
        for block in self.layers:
            if recompute_blocks and torch.is_grad_enabled():
                states = recompute(block, states, cos, sin, use_reentrant=False)
            else:
                states = block(states, cos, sin)
            hidden.append(states)
        return Output(hidden, self.logits(states) if logits else None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., vocab] of hidden states [..., hidden] after the last block."""
        weight = self.embed.weight if self.config.tied else self.head.weight
        return functional.linear(self.norm(hidden), weight)

    def angles(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines of the rotary angles of so many places, [length, rotary_dim / 2] each."""
        places = torch.arange(length, device=self.inv_freq.device)
        return rotary_angles(places, self.inv_freq, self._rope_scale)


def parameter_name(canonical: str) -> str:
    """Returns what a tensor of `gossamer.arch` is called among a decoder's parameters."""
    return canonical if canonical.endswith(".bias") else f"{canonical}.weight"


def load(source: Checkpoint | str | Path) -> Decoder:
    """Builds a decoder with the weights of a checkpoint, as float32 on the CPU.

    Args:
        source: An open checkpoint, or the path of what `gossamer.checkpoint.open_checkpoint` opens.

    Raises:
        GossamerError: it cannot be opened or read, has values that are not finite, or something that this module has
            not.
    """
    opened = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    family = arch.family(opened.config)
    config = family.describe(opened.config)
    with torch.device("meta"):
        decoder = Decoder(config)
    values = {
        parameter_name(name): torch.from_numpy(_owned(opened.read(source, finite=True)))
        for name, source in opened.sources().items()
    }
    decoder.load_state_dict(values, assign=True)
    decoder.inv_freq = torch.tensor(Sizes.of(config).inv_freq)
    return decoder


def save(decoder: Decoder, dst: str | Path, source: Checkpoint, dtype: str = "") -> None:
    """Writes a decoder as an ordinary Hugging Face checkpoint folder, or nothing.

    Args:
        decoder: The decoder; of the architecture of `source`.
        dst: Folder to make; must not exist, or be empty.
        source: Where the config, tokenizer files and tensors that the decoder lacks come from.
        dtype: Type of the stored values, "f32", "f16" or "bf16"; by default each tensor's own, f32 where that is
            a quantized one.

    Raises:
        GossamerError: `dst` is in use or cannot be written, or a value does not fit f16.
    """
    inside = arch.stored(source.sources())
    parameters = dict(decoder.named_parameters())

    def tensors() -> Iterator[tuple[str, NDArray[np.float32], str]]:
        for name in source.names():
            own = source.dtype(name)
            kind = dtype or (own if own in ("f32", "f16", "bf16") else "f32")
            if name not in inside:
                yield name, source.tensor(name), own if own in ("f32", "f16", "bf16") else "f32"
                continue
            values = np.array(source.tensor(name))
            for canonical, part in inside[name].items():
                part.write(values, parameters[parameter_name(canonical)].detach().to("cpu", torch.float32).numpy())
            if kind == "f16" and np.abs(values).max(initial=0.0) > _F16_MAX:
                raise GossamerError(f"{dst}: tensor {name} does not fit f16")
            yield name, values + np.float32(0), kind  # no negative zeros

    write_checkpoint(dst, source.config, tensors(), source)


def _owned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy that may be written to: the checkpoint's array can be a view of a file."""
    return np.array(values, dtype=np.float32, order="C")


def _split(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * width] as [batch, heads, length, width]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)
