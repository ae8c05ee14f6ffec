"""The protocols of what runs a model: `Engine` writes text, `Blocks` is walked block by block.

`_core.Decoder` has both, a GPU's `nn.engine.Engine` the first; whoever steps or walks a model asks for no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from . import _core

Batch = Sequence[tuple[int, ArrayLike]]
Mix = tuple[tuple[int, float], ...]
"""Adapters of a sequence by number, each with the factor of what it adds."""


class Engine(Protocol):
    """A model over packed weights and the keys and values of any number of sequences.

    Calls from several threads wait for one another, `free` alone never waits. A call that raises leaves every sequence
    as it was.
    """

    def step(self, batch: Batch, all_logits: bool = False) -> NDArray[np.float32]:
        """Appends tokens to sequences and returns logits.

        Args:
            batch: (sequence id, token ids) pairs; a new id begins a sequence.
            all_logits: Logits of every token instead of each entry's last.

        Returns:
            [n, vocab], in the order of the batch.

        Raises:
            ValueError: a token outside the vocabulary, a sequence named twice or grown beyond the context.
        """

    def fork(self, seq: int, to: int, length: int) -> None:
        """Begins sequence `to` with the first `length` tokens of another; they share memory until one writes there.

        Raises:
            ValueError: `seq` has fewer tokens or `length` is below its `shortest`, or `to` has some.
            CacheFull: keys and values would take more than `kv_limit`.
        """

    def rollback(self, seq: int, n: int) -> None:
        """Forgets the last n tokens of a sequence.

        Raises:
            ValueError: it has fewer, or would be shorter than `shortest`.
        """

    def shortest(self, seq: int) -> int:
        """Returns the least length, other than none, that a sequence may be cut to.

        0 where no layer has a window: keys and values that windows no longer reach are given back, but for those of a
        few hundred tokens.
        """

    def free(self, seq: int) -> None:
        """Forgets a sequence; unknown ids are ignored.

        The garbage collector may call this at any moment, in a thread that is inside another call, too: where one
        runs, the sequence goes when it is over, before the next begins.
        """

    def length(self, seq: int) -> int:
        """Returns the tokens that a sequence holds, 0 for an unknown one."""

    def kv_bytes_of(self, tokens: int, step: int) -> int:
        """Returns the most bytes of keys and values that a sequence has at any moment while it grows.

        Args:
            tokens: It grows to so many.
            step: It gets so many at once, at most.
        """

    def kv_growth(self, seq: int, tokens: int, step: int, forked: int = 0) -> int:
        """Returns the same beyond what a sequence has now, whatever others that share memory with it do meanwhile.

        Args:
            seq: The sequence.
            tokens: As of `kv_bytes_of`.
            step: As of `kv_bytes_of`.
            forked: Tokens of another sequence that it is to begin with, while it has none.
        """

    def kv_bytes_read(self, tokens: int) -> int:
        """Returns the bytes of keys and values that the last of so many tokens of a sequence reads."""

    def kernels(self) -> list[tuple[str, str]]:
        """Returns (weight name, kernel) pairs, of a step with one token."""

    @property
    def vocab(self) -> int:
        """Tokens that there are."""

    @property
    def threads(self) -> int:
        """Threads of the processor that a step runs on; 0 where it runs on a GPU."""

    @property
    def kv(self) -> str:
        """Type of cached keys and values."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step of one token reads; the embedding's row is not counted."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that sequences have now."""

    @property
    def kv_limit(self) -> int:
        """Most bytes of keys and values; 0 where there is no limit. A call beyond it raises `_core.CacheFull`."""


@runtime_checkable
class Encoding(Protocol):
    """An engine that runs encoders: states of inputs whose tokens see one another."""

    def encode(
        self,
        inputs: Sequence[NDArray[np.int32]],
        types: Sequence[NDArray[np.int32]] | None = None,
        adapters: Mix = (),
    ) -> NDArray[np.float32]:
        """Returns the normed states behind the last block, the encoder's if there is one, of inputs that stand alone.

        Args:
            inputs: Token ids of each, of any lengths; or frames [frames, bins], of which two are a state.
            types: Token types of each; None for type 0.
            adapters: Of all inputs; an encoder that a decoder reads has none.

        Returns:
            [tokens, hidden], of one input behind the other. An input's are bitwise the same in any company.

        Raises:
            ValueError: an input is empty or beyond the context, a token is outside the vocabulary, there is no such
                adapter.
            CacheFull: the keys and values of an input would take more than `kv_limit`.
        """


@runtime_checkable
class Adaptable(Protocol):
    """An engine whose sequences may choose adapters: parts that are added to a model's linears for them alone."""

    def add_adapter(self, weights: dict[str, _core.Weight], vectors: dict[str, NDArray[np.float32]] = ..., /) -> int:
        """Adds parts of blocks' linears, by canonical name, and returns the adapter's number.

        Raises:
            ValueError: there is no such linear, or a shape is another one; nothing has changed then.
        """

    def remove_adapter(self, adapter: int, /) -> None:
        """Forgets an adapter; raises `ValueError` where a sequence uses it."""

    def adapter_bytes(self, adapter: int, /) -> int:
        """Returns the bytes that a step reads beside `Engine.weight_bytes` where it uses the adapter."""

    def choose(self, seq: int, adapters: Mix, /) -> None:
        """Sets the adapters of a sequence that holds no tokens, until it is freed; a fork takes them over."""


@runtime_checkable
class Reading(Protocol):
    """An engine whose sequences each read an input, by way of an encoder."""

    def remember(self, batch: Sequence[tuple[int, ArrayLike]], /) -> None:
        """Encodes inputs, and has sequences that hold no tokens read them until they are freed; a fork reads the same.

        Args:
            batch: (sequence id, token ids of its input) pairs.

        Raises:
            ValueError: an input is empty or too long, a sequence has tokens or an input; nothing has changed then.
            CacheFull: keys and values would take more than `kv_limit`.
        """


@runtime_checkable
class Keepable(Protocol):
    """An engine whose sequences can be kept outside of it."""

    def save(self, seq: int, length: int, /) -> NDArray[np.uint8]:
        """Returns the bytes of what holds the first `length` tokens of a sequence.

        What else lies on their last page, such as tokens that were rolled back, comes along.

        Raises:
            ValueError: the sequence has fewer.
        """

    def restore(self, seq: int, data: NDArray[np.uint8], length: int, /) -> None:
        """Begins a sequence with what `save` gave, of an engine of the same model and type of keys and values.

        Raises:
            ValueError: the sequence has tokens, or these are not the bytes of so many.
        """


class Blocks(Protocol):
    """The blocks of a model, run one at a time over hidden states that the caller holds."""

    @property
    def encoder(self) -> Blocks | None:
        """The blocks of the encoder whose states it reads; None where there is none."""

    def embed(self, tokens: NDArray[Any], sequence_length: int = 0) -> NDArray[np.float32]:
        """Returns embeddings [n, hidden] of token ids [n]: consecutive sequences of so many tokens (0: one).

        Where frames [frames, bins] come in, they are one sequence, of half as many states.
        """

    def forward_block(
        self,
        index: int,
        hidden: NDArray[np.float32],
        capture: Sequence[str] = (),
        sequence_length: int = 0,
        memory: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Runs one block over hidden states, without touching any sequence.

        Args:
            index: The block.
            hidden: [tokens, hidden]; consecutive sequences, positions from 0, causal within each.
            capture: Linears whose inputs to return.
            sequence_length: Tokens a sequence; 0 for one sequence of all tokens.
            memory: States of an encoder, [states, hidden], as many for each sequence, where the block reads some.

        Returns:
            The new hidden states, and the captured inputs [tokens, cols] by name.
        """

    def block_inputs(
        self,
        index: int,
        hidden: NDArray[np.float32],
        capture: Sequence[str],
        sequence_length: int = 0,
        memory: NDArray[np.float32] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Returns what `forward_block` captures, and runs the block only as far as that needs."""

    def norm(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns hidden states [tokens, hidden] behind the last block behind the norm that comes there."""

    def head(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits [tokens, vocab] of hidden states [tokens, hidden] behind the last block."""

    def set_weight(self, name: str, weight: _core.Weight) -> None:
        """Replaces a block's weight, e.g. "layers.3.q", by one of the same shape."""
