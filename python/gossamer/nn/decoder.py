"""A decoder of plain torch modules, built from the same description and sources as the native one.

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
from torch.utils.checkpoint import checkpoint as recompute

from .. import arch
from ..arch.spec import Transformer
from ..checkpoints import Checkpoint, open_checkpoint, write_checkpoint
from ..errors import GossamerError
from .block import Network
from .encoder import Encoder
from .linears import Modules, parameter_name
from .memory import Apart, Read, Step, Whole
from .ops import TorchOps

_F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
        hidden: The residual stream after each block, [batch, length, hidden] each, before the final norm.
        logits: [batch, length, vocab]; None where they were not asked for.
        encoded: As `hidden`, of the encoder, if there is one.
    """

    hidden: list[Tensor]
    logits: Tensor | None
    encoded: list[Tensor]


class Decoder(Network):
    """A transformer that has its whole input at once: no cache.

    Attributes:
        encoder: What it reads; None where there is nothing.
    """

    encoder: Encoder | None

    def __init__(self, config: Transformer) -> None:
        """Builds the modules with weights that torch initializes; `load` fills them.

        Args:
            config: The architecture.

        Raises:
            GossamerError: the architecture has something that this module does not.
        """
        super().__init__(config, Modules(), TorchOps(), Encoder)

    def forward(
        self,
        tokens: Tensor,
        *,
        first: Tensor | None = None,
        reads: Tensor | None = None,
        heard: Tensor | None = None,
        logits: bool = True,
        recompute_blocks: bool = False,
    ) -> Output:
        """Runs sequences from their beginning.

        A sequence that is shorter than others is padded at its end with any token: attention is causal, so no real
        token sees padding.

        Args:
            tokens: [batch, length].
            first: Where in its row the text begins that a token belongs to, [batch, length]: texts in one row are kept
                apart. None takes a row for one text.
            reads: What the encoder reads for each row, tokens [batch, n] or frames [batch, 2 n, bins].
            heard: False at padding there, [batch, n].
            logits: Whether to compute them.
            recompute_blocks: Keep only the blocks' inputs for the backward pass and compute the rest again there (Chen
                et al. 2016).

        Returns:
            Hidden states after each block, and logits.
        """
        read, encoded = None, list[Tensor]()
        if self.encoder is not None:
            assert reads is not None
            assert heard is not None
            assert first is None
            states, step = self.encoder.begun(reads, heard)
            encoded = _through(self.encoder.layers, states, step, recompute_blocks)
            read = Read(self.encoder.normed(encoded[-1]), heard)
        step = self.whole(tokens.shape[1], read) if first is None else self.apart(first)
        hidden = _through(self.layers, self.enter(tokens, step), step, recompute_blocks)
        return Output(hidden, self.logits(hidden[-1]) if logits else None, encoded)

    def whole(self, length: int, read: Read | None = None) -> Step:
        """Returns the step of whole sequences of a length."""
        return self.step(Whole(), torch.arange(length, device=self.embed.weight.device), read)

    def apart(self, first: Tensor) -> Step:
        """Returns the step of rows of texts that begin at `first` [batch, length]."""
        positions = torch.arange(first.shape[1], device=first.device) - first
        return Step(Apart(first), positions, self.angles(positions[:, None]))


def _through(blocks: nn.ModuleList, states: Tensor, step: Step, recompute_blocks: bool) -> list[Tensor]:
    """States after each block."""
    hidden = []
    for block in blocks:
        if recompute_blocks and torch.is_grad_enabled():
            states = recompute(block, states, step, use_reentrant=False)
        else:
            states = block(states, step)
        hidden.append(states)
    return hidden


def load(source: Checkpoint | str | Path) -> Decoder:
    """Builds a decoder with the weights of a checkpoint, as float32 on the CPU.

    Args:
        source: An open checkpoint, or the path of what `gossamer.checkpoints.open_checkpoint` opens.

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
