"""Many samples of a model at once, on a card: all windows grow together, a token a step.

Every window stands at the same place, so that there is nothing to pad and nothing to ask the card before the end. The
native engine writes the same kind of text, window by window reproducible (`sampled_windows` of `generation`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..arch.llama import Sizes
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError
from ..packing.folder import PackedModel
from ..text.calibration import openings
from .decoder import Block, Decoder, parameter_name
from .device import find_device
from .functions import rotate

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
        self._device, self._dtype = find_device(device), dtype
        values = {name: torch.from_numpy(np.array(vector)) for name, vector in packed.vectors.items()}
        values |= {name: torch.from_numpy(weight.unpack()) for name, weight in packed.weights.items()}
        for name in packed.weights:
            if name + LOW_RANK_U in values:
                values[name] += values.pop(name + LOW_RANK_U) @ values.pop(name + LOW_RANK_V)
        try:
            with torch.device("meta"):
                self._decoder = Decoder(packed.config)
        except GossamerError as error:
            raise GossamerError(f"{self.info.get('path') or self.info['name']}: {error}") from None
        state = {parameter_name(name): value.to(self._device, dtype) for name, value in values.items()}
        self._decoder.load_state_dict(state, assign=True)
        self._sizes = Sizes.of(packed.config)
        self._decoder.inv_freq = torch.tensor(self._sizes.inv_freq, device=self._device)

    def part_windows(self, length: int) -> int:
        """Returns how many windows of so many tokens are written together: a power of two that memory has room for."""
        c = self._sizes
        each = 2 * c.layers * c.kv_heads * c.head_dim * length * self._dtype.itemsize
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
            GossamerError: the card has too little free memory.
        """
        try:
            return self._written(first, length, seed, progress)
        except torch.cuda.OutOfMemoryError:
            name = self.info.get("path") or self.info["name"]
            count = self.part_windows(length)
            raise GossamerError(
                f"{name}: the card has too little memory to write {count} windows of {length} tokens at once; "
                "take a shorter --length"
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

        cache = self._cache(rows, length)
        cos, sin = self._decoder.angles(length)
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
                logits = self._logits(token, at, cos, sin, cache).float()
            if progress is not None:
                progress((at + 1) * rows, length * rows, "sampling")
        tokens: NDArray[np.int32] = result.to("cpu", torch.int32).numpy()
        return tokens

    def _cache(self, rows: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each block, [rows, kv_heads, length, head_dim]."""
        c = self._sizes
        shape = (rows, c.kv_heads, length, c.head_dim)
        return [
            (
                torch.empty(shape, dtype=self._dtype, device=self._device),
                torch.empty(shape, dtype=self._dtype, device=self._device),
            )
            for _ in range(c.layers)
        ]

    def _logits(self, tokens: Tensor, at: int, cos: Tensor, sin: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Appends a token to each window, all at place `at`; returns logits [rows, vocab]."""
        c, rows = self._sizes, len(tokens)
        hidden = self._decoder.embed(tokens)
        for block, (keys, values) in zip(self._decoder.layers, cache, strict=True):
            assert isinstance(block, Block)
            x = block.attn_norm(hidden)
            # The heads that share keys are further queries of one head.
            q = rotate(block.q(x).view(rows, c.kv_heads, -1, c.head_dim), cos[at], sin[at])
            keys[:, :, at] = rotate(block.k(x).view(rows, c.kv_heads, c.head_dim), cos[at], sin[at])
            values[:, :, at] = block.v(x).view(rows, c.kv_heads, c.head_dim)
            near = keys[:, :, : at + 1], values[:, :, : at + 1]
            hidden = hidden + block.o(functional.scaled_dot_product_attention(q, *near).reshape(rows, -1))
            x = block.mlp_norm(hidden)
            hidden = hidden + block.down(functional.silu(block.gate(x)) * block.up(x))
        return self._decoder.logits(hidden)


def _table(texts: list[list[int]]) -> Tensor:
    """Texts of any length as rows, with -1 behind each: [texts, longest + 1]."""
    table = torch.full((len(texts), max(map(len, texts)) + 1), -1)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return table
