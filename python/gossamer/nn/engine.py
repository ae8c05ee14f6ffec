"""The decoder on a GPU: the engine's protocol over packed weights, static caches and captured steps.

Everything is plain torch and runs on any of its devices; only the packed products and the graphs are a GPU's.
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

from ..arch.spec import Experts, Transformer
from ..engine import Batch
from ..errors import GossamerError
from ..gpu.cuda import check_available
from ..gpu.dtypes import NAMES
from .block import Block, Network
from .cuda_ops import CudaOps, Kernels
from .linears import Copies, Linears, Packed, Rows, Vectors, Weights
from .memory import Cache, Reach
from .ops import Ops, TorchOps

_CHUNK = 512  # tokens of a prompt at a time
_FIRST = 512  # tokens that a cache holds at first; it doubles
_PARKED = 1  # caches without a sequence that are kept, with their graphs


class Engine:
    """A decoder-only transformer on a device of torch: the `gossamer.engine.Engine` of GPUs.

    One token is a step of fixed shapes and addresses, which a GPU captures once a cache and replays. A prompt runs in
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
            kernels: As for `gossamer.gpu.cuda.CudaWeight`.

        Raises:
            GossamerError: the device cannot be used or has too little memory, or a matrix has values that its kernels
                do not take; the line names it.
        """
        self.config = config
        self.device = torch.device(device)
        if self.device.type == "cuda":
            check_available()
            if any(isinstance(branch.mixer, Experts) for block in config.blocks for branch in block.branches):
                raise GossamerError(f"{Experts.part}: decoders on GPUs do not know them; run on the CPU")
        if str(self.device) == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.dtype = dtype or _type_of(weights)
        self._ops = self._choose_ops(kernels)
        try:
            self._network = self._build(Packed(weights, vectors, self.device, self.dtype, kernels))
        except torch.cuda.OutOfMemoryError:
            raise GossamerError(f"out of memory on {self.device} while the model was moved there") from None
        self._caches: dict[int, Cache] = {}
        self._parked: list[Cache] = []
        self._turn = threading.Lock()
        self._forgotten: deque[int] = deque()

    def _choose_ops(self, kernels: ModuleType | None) -> Ops:
        if kernels is None and self.device.type == "cuda":
            from .. import _cuda as kernels
        if kernels is None or self.dtype == torch.float32:
            return TorchOps()
        return CudaOps(Kernels(kernels, self.device))

    def _build(self, linears: Linears) -> Network:
        with torch.inference_mode():
            return Network(self.config, linears, self._ops).to(self.device)

    def repeat_block(self, layers: int) -> None:
        """Makes a model of so many copies of the first block, each in memory of its own: for benches."""
        first = self._network.layers[0]
        assert isinstance(first, Block)
        self.config = self.config.deeper(layers)
        self._network = self._build(Copies(self._network, first.projections, self._network.ends))

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

    def fork(self, seq: int, to: int, length: int) -> None:
        """Begins a sequence with a copy of the first tokens of another; see `gossamer.engine.Engine.fork`."""
        with self._turns():
            if not 0 <= length <= self._length(seq):
                raise ValueError(f"cannot fork {length} tokens of sequence {seq}, which has {self._length(seq)}")
            if held := self._length(to):
                raise ValueError(f"cannot fork into sequence {to}, which has {held} tokens")
            if length:
                try:
                    with torch.inference_mode():
                        self._room(to, length).copy_from(self._caches[seq], length)
                except torch.cuda.OutOfMemoryError:
                    self._forgotten.append(to)
                    raise GossamerError(f"out of memory on {self.device}") from None

    def rollback(self, seq: int, n: int) -> None:
        """Forgets the last n tokens of a sequence."""
        with self._turns():
            if not 0 <= n <= self._length(seq):
                raise ValueError(f"cannot roll {n} tokens of {self._length(seq)} back")
            if n:
                self._caches[seq].length -= n

    def shortest(self, seq: int) -> int:  # noqa: ARG002
        """Returns 0: all keys and values are kept."""
        return 0

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
        return [pair for rows in self._rows for pair in rows.kernels(self.dtype)]

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
        """Bytes of weights that a step of one token reads; of experts, as many as are chosen."""
        linears = self.config.linears
        shares = [linears[rows.names[0]].share if rows.names[0] in linears else 1.0 for rows in self._rows]
        return round(sum(rows.nbytes * share for rows, share in zip(self._rows, shares, strict=True)))

    def kv_bytes_of(self, tokens: int, step: int) -> int:  # noqa: ARG002
        """Returns bytes of a cache; see `gossamer.engine.Engine.kv_bytes_of`. Caches grow to twice what they were."""
        return self.kv_bytes_read(max(2 * tokens, _FIRST))

    def kv_growth(self, seq: int, tokens: int, step: int, forked: int = 0) -> int:  # noqa: ARG002
        """Returns what comes beyond a sequence's cache; see `gossamer.engine.Engine.kv_growth`."""
        with self._turns():
            held = self._caches[seq].capacity if seq in self._caches else 0
        return 0 if tokens <= held else self.kv_bytes_of(tokens, step) - self.kv_bytes_read(held)

    def kv_bytes_read(self, tokens: int) -> int:
        """Returns bytes of so many positions of a cache: what windows do not reach is masked."""
        return 2 * sum(heads * width for heads, width in self._network.slots) * self.dtype.itemsize * tokens

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that sequences have room for now."""
        with self._turns():
            return self.kv_bytes_read(sum(cache.capacity for cache in self._caches.values()))

    @property
    def kv_limit(self) -> int:
        """None but the device's memory."""
        return 0

    @property
    def _rows(self) -> list[Rows]:
        return [rows for rows in self._network.projections if isinstance(rows, Rows)]

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
            positions = torch.arange(first, first + count, device=self.device)
            states = self.forward(chunk, positions, cache, first + count)
            if all_logits or start + count == len(tokens):
                found.append(self._network.predict(states if all_logits else states[-1:]).float().cpu().numpy())
        return np.concatenate(found)

    def _room(self, seq: int, count: int) -> Cache:
        """The sequence's cache, with room for so many tokens more."""
        cache = self._caches.get(seq)
        if cache is None:
            cache = self._parked.pop() if self._parked else Cache(self._network.slots, _FIRST, self.device, self.dtype)
            cache.length = 0
            self._caches[seq] = cache
        needed = cache.length + count
        if needed > cache.capacity:
            capacity = max(2 * cache.capacity, -(-needed // _FIRST) * _FIRST)
            larger = Cache(self._network.slots, capacity, self.device, self.dtype)
            larger.copy_from(cache, cache.length)
            cache = self._caches[seq] = larger
        return cache

    def _one(self, cache: Cache, token: int) -> Tensor:
        """Logits [1, vocab] of one token."""
        cache.token.fill_(token)
        cache.position.fill_(cache.length)
        if self.device.type != "cuda":
            return self._step(cache)
        if cache.graph is None:
            self._capture(cache)
        assert cache.graph is not None
        cache.graph.replay()
        return cache.logits

    def _step(self, cache: Cache) -> Tensor:
        return self._network.predict(self.forward(cache.token, cache.position, cache, cache.capacity))

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

    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, seen: int) -> Tensor:
        """Runs tokens of one sequence through the blocks.

        Args:
            tokens: [n].
            positions: [n], where they stand in the sequence.
            cache: Of the sequence; gets their keys and values.
            seen: Places of the cache to look at, at least those up to the last token.

        Returns:
            Hidden states [n, hidden] behind the last block, normed.
        """
        return self._network.run(tokens, self._network.step(Reach(cache, positions, seen), positions))


def _type_of(weights: Weights) -> torch.dtype:
    """The type of the float matrices; integer values go with either."""
    types = {weight.type for weight in weights.values()} & {"f32", "f16", "bf16"}
    return torch.float16 if "f16" in types and "bf16" not in types else torch.bfloat16
