"""The decoder on a card: the engine's protocol over packed weights, static caches and captured steps.

Everything is plain torch and runs on any of its devices; only the packed products and the graphs are a card's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..arch.llama import Sizes
from ..arch.spec import Transformer
from ..engine import Batch
from ..errors import GossamerError
from ..gpu.cuda import check_available
from ..gpu.dtypes import NAMES
from .engine_parts import Block, Cache, Rows, Vectors, Weights, dense_weight, linear_of
from .engine_steps import CardSteps, Steps, TorchSteps
from .functions import rotary_angles

_CHUNK = 512  # tokens of a prompt at a time
_FIRST = 512  # tokens that a cache holds at first; it doubles
_PARKED = 1  # caches without a sequence that are kept, with their graphs


class Engine:
    """A decoder-only transformer on a device of torch: the `gossamer.engine.Engine` of GPUs.

    One token is a step of fixed shapes and addresses, which a card captures once a cache and replays. A prompt runs in
    chunks. Activations, keys and values have one type of 16 bits; norms and sums are taken in float32.

    Attributes:
        config: The architecture.
        device: Where it runs.
        dtype: Type of activations, keys and values.
    """

    def __init__(
        self,
        config: Transformer,
        weights: Weights,
        vectors: Vectors,
        device: torch.device | str = "cuda",
        *,
        dtype: torch.dtype | None = None,
        kernels: ModuleType | None = None,
    ) -> None:
        """Moves a packed model to a device.

        Args:
            config: The architecture.
            weights: Matrices by canonical name.
            vectors: Norms and biases by canonical name.
            device: A device of torch.
            dtype: Type of activations; None takes the one that the float matrices have, bfloat16 where all are integer.
                With float32 every matrix is expanded.
            kernels: As for `gossamer.cuda.CudaWeight`.

        Raises:
            GossamerError: the device cannot be used or has too little memory, or a matrix has values that its kernels
                do not take; the line names it.
        """
        self.config, self._sizes = config, Sizes.of(config)  # another architecture is refused here
        self.device = torch.device(device)
        if self.device.type == "cuda":
            check_available()
        if str(self.device) == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.dtype = dtype or _type_of(weights)
        self._steps = self._choose_steps(kernels)
        try:
            with torch.inference_mode():
                self._build(weights, vectors, kernels)
        except torch.cuda.OutOfMemoryError:
            raise GossamerError(f"out of memory on {self.device} while the model was moved there") from None
        self._caches: dict[int, Cache] = {}
        self._parked: list[Cache] = []
        self._turn = threading.Lock()
        self._forgotten: deque[int] = deque()

    def _choose_steps(self, kernels: ModuleType | None) -> Steps:
        if kernels is None and self.device.type == "cuda":
            from .. import _cuda as kernels
        if kernels is None or self.dtype == torch.float32:
            return TorchSteps()
        return CardSteps(kernels, self.device)

    def _build(self, weights: Weights, vectors: Vectors, kernels: ModuleType | None) -> None:
        def linear(*names: str) -> Rows:
            return linear_of(names, weights, vectors, self.device, self.dtype, kernels)

        def norm(name: str) -> Tensor:
            return torch.from_numpy(np.array(vectors[name])).to(self.device)

        self._inv_freq = torch.tensor(self._sizes.inv_freq, dtype=torch.float32, device=self.device)
        self._blocks = []
        for layer in range(self.config.layers):
            own = f"layers.{layer}."
            self._blocks.append(
                Block(
                    norm(f"{own}attn_norm"),
                    linear(f"{own}q", f"{own}k", f"{own}v"),
                    linear(f"{own}o"),
                    norm(f"{own}mlp_norm"),
                    linear(f"{own}gate", f"{own}up"),
                    linear(f"{own}down"),
                )
            )
        self._norm = norm("norm")
        self._head = linear("embed" if self.config.tied else "head")
        shared = self._head.table if self.config.tied else None
        self._embed = dense_weight(weights["embed"], self.device, self.dtype) if shared is None else shared

    def repeat_block(self, layers: int) -> None:
        """Makes a model of so many copies of the first block, each in memory of its own: for benches."""
        self._blocks = [self._blocks[0], *(self._blocks[0].clone() for _ in range(layers - 1))]
        self.config = self.config.deeper(layers)
        self._sizes = Sizes.of(self.config)

    # --- the protocol -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, all_logits: bool = False) -> NDArray[np.float32]:
        """Appends tokens to sequences and returns logits; see `gossamer.engine.Engine.step`."""
        entries = [(seq, np.asarray(tokens, dtype=np.int64).reshape(-1)) for seq, tokens in batch]
        if len({seq for seq, _ in entries}) != len(entries):
            raise ValueError("a sequence is named twice")
        with self._turns():
            for seq, tokens in entries:
                self._check(seq, tokens)
            try:
                with torch.inference_mode():
                    logits = [self._extend(seq, tokens, all_logits) for seq, tokens in entries]
            except torch.cuda.OutOfMemoryError:
                raise GossamerError(f"out of memory on {self.device}") from None
            for seq, tokens in entries:
                self._caches[seq].length += len(tokens)
        return np.concatenate(logits)

    def rollback(self, seq: int, n: int) -> None:
        """Forgets the last n tokens of a sequence."""
        with self._turns():
            if not 0 <= n <= self._length(seq):
                raise ValueError(f"cannot roll {n} tokens of {self._length(seq)} back")
            if n:
                self._caches[seq].length -= n

    def free(self, seq: int) -> None:
        """Forgets a sequence; unknown ids are ignored. Never waits: a call that runs ends first."""
        self._forgotten.append(seq)
        if self._turn.acquire(blocking=False):
            try:
                self._forget()
            finally:
                self._turn.release()

    def length(self, seq: int) -> int:
        """Returns the tokens that a sequence holds, 0 for an unknown one."""
        with self._turns():
            return self._length(seq)

    def kernels(self) -> list[tuple[str, str]]:
        """Returns (weight name, kernel) pairs; what torch multiplies dense has its library's."""
        blocks = (linear for block in self._blocks for linear in (block.qkv, block.o, block.gate_up, block.down))
        return [pair for linear in (*blocks, self._head) for pair in linear.kernels(self.dtype)]

    @property
    def vocab(self) -> int:
        """Tokens that there are."""
        return self.config.vocab

    @property
    def threads(self) -> int:
        """None of the processor's."""
        return 0

    @property
    def kv(self) -> str:
        """Type of cached keys and values."""
        return NAMES[self.dtype]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads."""
        parts = [linear for block in self._blocks for linear in (block.qkv, block.o, block.gate_up, block.down)]
        return sum(linear.nbytes for linear in (*parts, self._head))

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values a token."""
        return 2 * self._sizes.layers * self._sizes.kv_heads * self._sizes.head_dim * self.dtype.itemsize

    @contextmanager
    def _turns(self) -> Iterator[None]:
        """Calls run one at a time; each begins with what `free` left over."""
        with self._turn:
            self._forget()
            yield

    def _forget(self) -> None:
        while self._forgotten:
            cache = self._caches.pop(self._forgotten.popleft(), None)
            if cache is not None and len(self._parked) < _PARKED:
                self._parked.append(cache)

    def _length(self, seq: int) -> int:
        cache = self._caches.get(seq)
        return 0 if cache is None else cache.length

    def _check(self, seq: int, tokens: NDArray[np.int64]) -> None:
        if len(tokens) == 0:
            raise ValueError("a sequence must get at least one token")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab:
            bad = int(tokens[(tokens < 0) | (tokens >= self.config.vocab)][0])
            raise ValueError(f"token {bad} is not in the vocabulary of {self.config.vocab}")
        if self._length(seq) + len(tokens) > self.config.context:
            raise ValueError(f"{self._length(seq) + len(tokens)} tokens exceed the context of {self.config.context}")

    # --- running ------------------------------------------------------------------------------------------------------

    def _extend(self, seq: int, tokens: NDArray[np.int64], all_logits: bool) -> NDArray[np.float32]:
        cache = self._room(seq, len(tokens))
        if len(tokens) == 1:
            return self._one(cache, int(tokens[0])).float().cpu().numpy()
        found = []
        for start in range(0, len(tokens), _CHUNK):
            chunk = torch.from_numpy(tokens[start : start + _CHUNK]).to(self.device)
            first, count = cache.length + start, len(chunk)
            places = torch.arange(first, first + count, device=self.device)
            states = self.forward(chunk, places, cache, first + count)
            if all_logits or start + count == len(tokens):
                found.append(self.logits(states if all_logits else states[-1:]).float().cpu().numpy())
        return np.concatenate(found)

    def _room(self, seq: int, count: int) -> Cache:
        """The sequence's cache, with room for so many tokens more."""
        cache = self._caches.get(seq)
        if cache is None:
            cache = self._parked.pop() if self._parked else Cache(self._sizes, _FIRST, self.device, self.dtype)
            cache.length = 0
            self._caches[seq] = cache
        needed = cache.length + count
        if needed > cache.capacity:
            capacity = max(2 * cache.capacity, -(-needed // _FIRST) * _FIRST)
            larger = Cache(self._sizes, capacity, self.device, self.dtype)
            larger.keys[:, :, : cache.length] = cache.keys[:, :, : cache.length]
            larger.values[:, :, : cache.length] = cache.values[:, :, : cache.length]
            larger.length = cache.length
            cache = self._caches[seq] = larger
        return cache

    def _one(self, cache: Cache, token: int) -> Tensor:
        """Logits [1, vocab] of one token."""
        cache.token.fill_(token)
        cache.place.fill_(cache.length)
        if self.device.type != "cuda":
            return self._step(cache)
        if cache.graph is None:
            self._capture(cache)
        assert cache.graph is not None
        cache.graph.replay()
        return cache.logits

    def _step(self, cache: Cache) -> Tensor:
        return self.logits(self.forward(cache.token, cache.place, cache, cache.capacity))

    def _capture(self, cache: Cache) -> None:
        """Captures the step of a cache. Running it first, as capturing needs, writes what the replay writes again."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(side):
            self._step(cache)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=side):
            cache.logits = self._step(cache)
        cache.graph = graph

    def forward(self, tokens: Tensor, places: Tensor, cache: Cache, seen: int) -> Tensor:
        """Runs tokens of one sequence through the blocks.

        Args:
            tokens: [n].
            places: [n], where they stand in the sequence.
            cache: Of the sequence; gets their keys and values.
            seen: Places of the cache to look at, at least those up to the last token.

        Returns:
            Hidden states [n, hidden] behind the last block, normed.
        """
        cos, sin = rotary_angles(places, self._inv_freq, self._sizes.rope_scale)
        states, update = functional.embedding(tokens, self._embed), None
        steps, eps = self._steps, self._sizes.norm_eps
        for index, block in enumerate(self._blocks):
            states, x = steps.add_norm(states, update, block.attn_norm, eps)
            qkv = block.qkv(x).view(len(x), -1, self._sizes.head_dim)
            keys, values = cache.keys[index], cache.values[index]
            queries = steps.rotate(qkv, self._sizes.heads, cos, sin, places, keys, values)
            update = block.o(steps.attend(queries, keys, values, places, seen))
            states, x = steps.add_norm(states, update, block.mlp_norm, eps)
            update = block.down(steps.gate(block.gate_up(x)))
        return steps.add_norm(states, update, self._norm, eps)[1]

    def logits(self, states: Tensor) -> Tensor:
        """Returns logits [n, vocab] of normed hidden states."""
        return self._head(states)


def _type_of(weights: Weights) -> torch.dtype:
    """The type of the float matrices; integer values go with either."""
    types = {weight.type for weight in weights.values()} & {"f32", "f16", "bf16"}
    return torch.float16 if "f16" in types and "bf16" not in types else torch.bfloat16
