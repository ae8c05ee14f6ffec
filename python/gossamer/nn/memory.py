"""Where keys and values are while a step runs: in the sequences themselves, or in caches.

A cache has a slot for each attention of a network: `slots` has their key/value heads and widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .functions import Distances, Real, Scores, attention, causal_attention

Slots = Sequence[tuple[int, int]]


class Memory(Protocol):
    """Keys and values of the tokens before those of a step."""

    def attend(self, slot: int, /, queries: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
        """Adds keys and values of a step's tokens, and returns causal attention [..., heads, n, width].

        Args:
            slot: Number of the attention.
            queries: [..., heads, n, width].
            keys: [..., kv_heads, n, width].
            values: As keys.
            scores: What becomes of the products of queries and keys.
        """


@dataclass(frozen=True)
class Step:
    """What a step has beside the stream.

    Attributes:
        memory: Keys and values.
        positions: Where its tokens stand in their sequences, [n], or [batch, n] where they stand elsewhere in each.
        angles: Cosines and sines of each kind of rotary positions of the network, [n, rotary_dim / 2], or
            [batch, 1, n, rotary_dim / 2].
        read: What its tokens read of an encoder; None: nothing.
    """

    memory: Memory
    positions: Tensor
    angles: Sequence[tuple[Tensor, Tensor]]
    read: Read | None = None


class Read:
    """States of an encoder.

    Attributes:
        states: [batch, m, hidden].
    """

    def __init__(self, states: Tensor, real: Tensor) -> None:
        """Takes the states, and False at padding, [batch, m]."""
        self.states, self._real = states, _padded(real)
        self._distances: dict[int, Real] = {}

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
        """Returns attention [batch, heads, n, width] over keys and values of all states."""
        if self._real is None:
            return attention(queries, keys, values, scores, None)
        count = queries.shape[-2]
        if count not in self._distances:
            self._distances[count] = Real(count, self._real)
        return attention(queries, keys, values, scores, self._distances[count])


def _padded(real: Tensor) -> Tensor | None:
    """Returns what says where padding is; None where there is none."""
    return None if bool(real.all()) else real


class Both:
    """Whole inputs whose tokens see one another, [batch, heads, n, width], padded at their ends."""

    def __init__(self, real: Tensor) -> None:
        """Takes False at padding, [batch, n]."""
        self._distances, self._padded = Real(real.shape[1], real), _padded(real) is not None

    def attend(self, _slot: int, /, queries: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
        """See `Memory`."""
        plain = scores.plain and not self._padded
        return attention(queries, keys, values, scores, None if plain else self._distances)


class Whole:
    """Whole sequences, [batch, heads, n, width], of one length: no keys and values are kept."""

    _distances: Distances | None = None

    def attend(self, _slot: int, /, queries: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
        """See `Memory`."""
        if self._distances is None:
            positions = torch.arange(queries.shape[-2], device=queries.device)
            self._distances = Distances(positions, positions)
        return causal_attention(queries, keys, values, scores, self._distances)


class Apart:
    """Windows [batch, heads, n, width] in which several texts lie one behind the other, each for itself."""

    def __init__(self, first: Tensor) -> None:
        """Takes where in its window the text begins that a token belongs to, [batch, n]."""
        positions = torch.arange(first.shape[1], device=first.device)
        self._distances = Distances(positions, positions, first)

    def attend(self, _slot: int, /, queries: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
        """See `Memory`."""
        return attention(queries, keys, values, scores, self._distances)


class LockStep:
    """Caches of sequences that all stand at the same position and get a token each, [rows, heads, 1, width].

    Attributes:
        at: The position of a step's tokens.
    """

    def __init__(self, slots: Slots, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        """Makes room for so many tokens of so many rows."""
        self.at = 0
        self._slots = [
            tuple(torch.empty((rows, kv_heads, length, width), dtype=dtype, device=device) for _ in range(2))
            for kv_heads, width in slots
        ]

    def attend(self, slot: int, queries: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
        """See `Memory`."""
        all_keys, all_values = self._slots[slot]
        all_keys[:, :, self.at], all_values[:, :, self.at] = keys[:, :, 0], values[:, :, 0]
        end = self.at + 1
        first = max(0, end - scores.window) if scores.window else 0
        distances = None
        if not scores.plain:
            positions = torch.arange(first, end, device=queries.device)
            distances = Distances(positions[-1:], positions)
        return attention(queries, all_keys[:, :, first:end], all_values[:, :, first:end], scores, distances)


class Cache:
    """Keys and values of one sequence at fixed addresses, and what its captured step reads and writes.

    Attributes:
        capacity: Tokens that it has room for.
        length: Tokens that it holds.
        keys: Of each slot, [kv_heads, capacity, width].
        values: As keys.
        token: [1], the step's input.
        position: [1], where it stands.
        graph: The captured step.
        logits: [1, vocab], its output.
    """

    logits: Tensor

    def __init__(self, slots: Slots, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        """Makes room for so many tokens."""
        self.capacity, self.length = capacity, 0
        # Zeros: what is not written yet is masked, and times zero it must not be NaN.
        self.keys, self.values = (
            [torch.zeros((heads, capacity, width), device=device, dtype=dtype) for heads, width in slots]
            for _ in range(2)
        )
        self.token, self.position = (torch.zeros(1, device=device, dtype=torch.int64) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None

    def copy_from(self, other: Cache, length: int) -> None:
        """Takes over the first tokens that another cache holds."""
        self.length = length
        for own, given in zip([*self.keys, *self.values], [*other.keys, *other.values], strict=True):
            own[:, :length] = given[:, :length]


class Reach:
    """A cache as tokens at some positions look at it, [heads, n, width].

    Attributes:
        cache: It.
        positions: [n].
        seen: Places of the cache to look at, at least those up to the last token.
    """

    def __init__(self, cache: Cache, positions: Tensor, seen: int) -> None:
        """As the attributes."""
        self.cache, self.positions, self.seen = cache, positions, seen

    @cached_property
    def _distances(self) -> Distances:
        return Distances(self.positions, torch.arange(self.seen, device=self.positions.device))

    def attend(self, slot: int, queries: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Tensor:
        """See `Memory`."""
        self.cache.keys[slot].index_copy_(1, self.positions, keys)
        self.cache.values[slot].index_copy_(1, self.positions, values)
        return self.look(slot, queries, scores)

    def look(self, slot: int, queries: Tensor, scores: Scores) -> Tensor:
        """Returns what `attend` does, of keys and values that are there already."""
        keys, values = (side[slot][None, :, : self.seen] for side in (self.cache.keys, self.cache.values))
        return attention(queries[None], keys, values, scores, self._distances)[0]
