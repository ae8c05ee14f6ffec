"""Many samples of a model at once, on a GPU: all windows grow together, a token a step.

Every window stands at the same position, so that there is nothing to pad and nothing to ask the GPU before the end. The
native engine writes the same kind of text, window by window reproducible (`sampled_windows` of `generation`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoints.branches import deltas_of
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError
from ..folders import called
from ..packing.folder import PackedModel
from ..text.calibration import check_writes_alone, openings
from .decoder import Decoder
from .device import find_device
from .linears import parameter_name
from .memory import LockStep, Step

_CACHE_BYTES = 8 << 30  # of keys and values, at most
_MOST = 1024


class Sampler:
    """A model whose samples are drawn on one device.

    Attributes:
        config: The decoder.
        tokenizer: Of the model.
        info: "name" and "source" of the model.
    """

    def __init__(self, packed: PackedModel, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> None:
        """Expands the weights of a packed model on a device.

        Args:
            packed: The model.
            device: "cuda" or "cpu".
            dtype: Type of weights and activations.

        Raises:
            GossamerError: there is no such device, or the architecture has something that the torch decoder lacks.
        """
        self.config, self.tokenizer, self.info = packed.config, packed.tokenizer, packed.info
        check_writes_alone(packed.config, packed.info)
        self._device, self._dtype = find_device(device), dtype
        values = {name: torch.from_numpy(np.array(vector)) for name, vector in packed.vectors.items()}
        values |= {name: torch.from_numpy(weight.unpack()) for name, weight in packed.weights.items()}
        for name in packed.weights:
            if name + LOW_RANK_U in values:
                values[name] += values.pop(name + LOW_RANK_U) @ values.pop(name + LOW_RANK_V)
            for delta in deltas_of(name, packed.weights):
                values[name] += values.pop(delta)
        try:
            with torch.device("meta"):
                self._decoder = Decoder(packed.config)
        except GossamerError as error:
            raise GossamerError(f"{called(self.info)}: {error}") from None
        state = {parameter_name(name): value.to(self._device, dtype) for name, value in values.items()}
        self._decoder.load_state_dict(state, assign=True)
        self._decoder.to(self._device)

    def part_windows(self, length: int) -> int:
        """Returns how many windows of so many tokens are written together: a power of two that memory has room for."""
        each = 2 * sum(heads * width for heads, width in self._decoder.slots) * length * self._dtype.itemsize
        return 1 << min(max(_CACHE_BYTES // each, 1), _MOST).bit_length() - 1

    @torch.inference_mode()
    def windows(
        self, first: int, length: int, seed: int, progress: Callable[[int, int, str], None] | None = None
    ) -> NDArray[np.int32]:
        """Writes `part_windows(length)` windows at temperature 1; texts open, end and go on as in `sampled_windows`.

        What is drawn depends on the seed, the number of the first window, the weights and the device.

        Args:
            first: Number of the first window.
            length: Tokens a window.
            seed: Of the samples.
            progress: Called with (tokens done, tokens, what).

        Returns:
            Tokens, int32 [windows, length].

        Raises:
            GossamerError: the GPU has too little free memory.
        """
        try:
            return self._written(first, length, seed, progress)
        except torch.cuda.OutOfMemoryError:
            count = self.part_windows(length)
            raise GossamerError(
                f"{called(self.info)}: the GPU has too little memory to write {count} windows of {length} tokens at "
                "once; take a shorter --length"
            ) from None

    def _written(
        self, first: int, length: int, seed: int, progress: Callable[[int, int, str], None] | None
    ) -> NDArray[np.int32]:
        rows, device = self.part_windows(length), self._device
        state = np.random.SeedSequence([seed, first]).generate_state(2, np.uint32)
        generator = torch.Generator(device).manual_seed(int(state[0]) << 31 ^ int(state[1]))
        chats, documents = openings(self.tokenizer)
        table = _table([*chats, *documents]).to(device)
        chatting = (torch.arange(first, first + rows, device=device) % 2 == 0) & bool(chats)
        low = torch.where(chatting, 0, len(chats))
        count = torch.where(chatting, len(chats), len(documents))
        ends = torch.tensor(sorted(self.tokenizer.eos_ids), device=device)

        def choose() -> Tensor:
            return low + (torch.rand(rows, generator=generator, device=device) * count).long()

        def draw(logits: Tensor) -> Tensor:  # by Gumbel's trick: the sum of the masses is not needed
            noise = torch.empty_like(logits).exponential_(generator=generator)
            return (logits - noise.log()).argmax(-1)

        memory = LockStep(self._decoder.slots, rows, length, device, self._dtype)
        positions = torch.arange(length, device=device)
        angles = self._decoder.angles(positions)
        opening, place = choose(), torch.zeros(rows, dtype=torch.int64, device=device)
        result = torch.empty((rows, length), dtype=torch.int64, device=device)
        logits = None
        for at in range(length):
            given = table[opening, place]  # -1 behind the opening
            token = given if logits is None else torch.where(given >= 0, given, draw(logits))
            result[:, at] = token
            ended = (given < 0) & torch.isin(token, ends)
            opening = torch.where(ended, choose(), opening)
            place = torch.where(ended, 0, torch.where(given >= 0, place + 1, place))
            if at + 1 < length:
                memory.at = at
                here = slice(at, at + 1)
                step = Step(memory, positions[here], [(cos[here], sin[here]) for cos, sin in angles])
                logits = self._decoder.predict(self._decoder.run(token[:, None], step))[:, 0].float()
            if progress is not None:
                progress((at + 1) * rows, length * rows, "sampling")
        tokens: NDArray[np.int32] = result.to("cpu", torch.int32).numpy()
        return tokens


def _table(texts: list[list[int]]) -> Tensor:
    """Texts of any length as rows, with -1 behind each: [texts, longest + 1]."""
    table = torch.full((len(texts), max(map(len, texts)) + 1), -1)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return table
