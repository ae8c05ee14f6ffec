"""The native core: packed weights, kernels and the decoder step. `gossamer` is the interface to use."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str
__source_hash__: str

def isa() -> str:
    """Returns the instruction-set tier in use: GOSSAMER_ISA, or the highest that this machine has."""

def isas() -> list[str]:
    """Returns the tiers that this machine can run, rising."""

def compiler() -> str:
    """Returns the compiler that this module was built with, and its version."""

def default_threads() -> int:
    """Returns the threads used when none are asked for: physical cores within the cgroup quota."""

def kernels(isa: str | None = None) -> list[str]:
    """Returns the names of the linear kernels that can run under the active tier, or of one tier of `isas()`."""

class Weight:
    """An immutable packed weight matrix; rows are outputs, cols are inputs. See docs/format.md for the streams."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def group(self) -> int:
        """Inputs that a scale serves; 0 for one scale a row, and for float types."""

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(N, M) of format "nm"."""

    @property
    def nnz(self) -> int:
        """Stored values that are not zero, counted anew at each call."""

    @property
    def nbytes(self) -> int:
        """Bytes of all streams, which is what one token reads."""

    def streams(self) -> dict[str, NDArray[Any]]:
        """Returns the streams as read-only vectors over the packed memory, spare bytes included."""

    def unpack(self) -> NDArray[np.float32]:
        """Returns the stored numbers, [rows, cols], scales applied."""

    def codes(self) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        """Returns integer codes [rows, cols] and scales [rows, groups].

        Raises:
            ValueError: the type is a float type.
        """

def pack(values: ArrayLike, format: str, type: str, group: int = 64, pattern: tuple[int, int] | None = None) -> Weight:
    """Rounds float values [rows, cols] to `type` and packs them.

    Raises:
        ValueError: an unknown format or type, an illegal group or pattern, values that do not fit.
    """

def choose_scales(values: ArrayLike, type: str, group: int = 64) -> NDArray[np.float16]:
    """Returns the scales that `pack` gives values [rows, cols] of type int8 or int4, [rows, ceil(cols / group)].

    Raises:
        ValueError: another type, an illegal group, values that are not finite or too large.
    """

def round_codes(values: ArrayLike, type: str, group: int = 64) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Rounds values [rows, cols] to int8 or int4 as `pack` does; returns codes [rows, cols] and scales [rows, groups].

    Raises:
        ValueError: as `choose_scales`.
    """

def pack_codes(
    codes: ArrayLike,
    scales: NDArray[np.float16],
    format: str,
    type: str,
    group: int = 64,
    pattern: tuple[int, int] | None = None,
) -> Weight:
    """Packs int8 or int4 codes [rows, cols] with their scales [rows, ceil(cols / group)] as they are."""

def weight_from_streams(
    format: str,
    type: str,
    rows: int,
    cols: int,
    group: int,
    pattern: tuple[int, int] | None,
    streams: dict[str, NDArray[Any]],
) -> Weight:
    """Wraps streams without copying, after checking every size, offset and index in them.

    Raises:
        ValueError: names the stream that is missing or wrong, and how.
    """

def linear(weight: Weight, x: ArrayLike, activations: str = "auto", threads: int = 0) -> NDArray[np.float32]:
    """Multiplies x [batch, cols] by the weight; returns [batch, rows].

    Args:
        weight: The packed weight.
        x: Inputs, converted to float32.
        activations: "f32", "bf16", "a8" (8 bits with a scale per 64 inputs, 32 with groups of 32), or "auto": a8 for
            integer weights, f32 for float ones. Where a weight has no kernel for the type, f32 is used.
        threads: 0 for the default.
    """

def run_kernel(name: str, weight: Weight, x: ArrayLike) -> NDArray[np.float32]:
    """Runs one kernel of `kernels()` on x [batch, cols], on one thread: for tests and benches.

    Returns:
        [batch, rows + 16]; the last 16 columns stay NaN, since no kernel writes beyond its rows.

    Raises:
        ValueError: the kernel cannot run here, or takes other weights.
    """

def quantize_activations(
    x: ArrayLike, unit: int = 64
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Returns what a8 kernels see of x [batch, cols].

    Codes are [batch, padded], scales and surpluses (-128 times the sum of the codes) are [batch, padded / unit].
    """

def read_bandwidth(size: int, threads: int = 0, prefetch: bool = False, repeats: int = 1) -> NDArray[np.float64]:
    """Reads a buffer again and again with the widest vectors of the active tier, and does nothing with the bytes.

    The buffer is new, lies in huge pages where the system gives them, and is first touched by the threads that read it.

    Args:
        size: Bytes of the buffer, rounded up to a multiple of 512.
        threads: 0 for the default.
        prefetch: Whether software prefetches run ahead of the reads.
        repeats: Passes over the buffer.

    Returns:
        Seconds of each pass [repeats]; the first finds in the caches what the writing left there.

    Raises:
        ValueError: size or repeats below 1, or threads out of range.
    """

def time_linears(
    weights: Sequence[Weight | Sequence[Weight]],
    x: ArrayLike | int = 1,
    activations: str = "auto",
    threads: int = 0,
    repeats: int = 1,
    kernel: str | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Times passes through a list of weights, one product after another on one thread team, as a decode step runs them.

    The time includes bringing the inputs into the form that the kernels take, once an entry of the list.

    Args:
        weights: Weights, or sequences of weights of equal columns that run as one parallel region, as q, k and v do.
        x: Inputs [batch, cols] for weights of `cols` columns; or a batch size, and inputs of the right width are drawn.
        activations: As for `linear`.
        threads: 0 for the default.
        repeats: Passes.
        kernel: The kernel of `kernels()` to run instead of the best; it says the activations, too.

    Returns:
        Seconds of each pass [repeats], and the outputs [batch, rows] of the last weight.

    Raises:
        ValueError: no weights, columns that differ, a kernel that cannot take the weights, or a number out of range.
    """

class Linear:
    """A packed weight with its kernel, for memory that the caller knows the address of. Nothing here checks memory."""

    def __init__(self, weight: Weight, activations: str = "auto") -> None:
        """Chooses the kernel.

        Args:
            weight: The packed weight, which stays alive with this.
            activations: As for `linear`.

        Raises:
            ValueError: unknown activations.
        """

    def multiply(
        self, x: int, tokens: int, stride: int, y: int, type: int, bias: int, bias_type: int, threads: int
    ) -> None:
        """Computes y = x W^T + bias on the host's threads; calls may run at the same time.

        Args:
            x: Address of the inputs [tokens, cols], of any alignment; a row's elements follow each other.
            tokens: Rows of x.
            stride: Elements from row to row of x.
            y: Address of the outputs [tokens, rows], without gaps.
            type: Of x and y: 0 for float32, 1 for bfloat16, 2 for float16.
            bias: Address of the bias [rows]; 0 for none.
            bias_type: As `type`.
            threads: At most so many; see `use_open_mp`.
        """

    def expand(self, begin: int, end: int, out: int, stride: int, threads: int) -> None:
        """Writes the numbers of panels [begin, end), 16 rows each, scales applied.

        Args:
            begin: First panel.
            end: The panel behind the last.
            out: Address of float32 [rows of the panels, cols].
            stride: Elements from row to row of out.
            threads: At most so many.

        Raises:
            ValueError: there are no such panels.
        """

    @property
    def kernel(self) -> str:
        """Name of the kernel."""

def use_open_mp(library: str) -> bool:
    """Has `Linear` run on the threads of the OpenMP runtime that a loaded library brought, beside the library's own.

    Args:
        library: Path of a shared library that the process has loaded.

    Returns:
        Whether there is such a runtime. Where there is none, `Linear` has a thread team of its own.
    """

class CacheFull(RuntimeError):
    """The KV cache is at its limit: end a sequence, or roll one back."""

class Decoder:
    """A transformer over packed weights, with paged KV caches for any number of sequences.

    Calls from several threads wait for one another. A call that raises leaves every sequence as it was.

    Args:
        config: What `gossamer.arch.spec.Transformer.to_dict` returns.
        weights: Matrices by canonical name.
        vectors: Norms and biases by canonical name.
        threads: 0 for the default.
        kv: Type of cached keys and values, "f32", "f16", "bf16" or "int8".
        activations: As for `linear`.
        kv_limit: Most bytes of cached keys and values; 0 for no limit.
        team_of: A decoder whose threads this one uses, too; calls of both take turns.
        draft_of: A decoder of layers of the same sizes, whose threads and sequences this one uses, too: each goes on
            behind what the other has computed. "head" is given even where the description has it tied, and may have
            fewer rows: logits are then those of the vocabulary's first tokens. `kv` and `kv_limit` are the other's.

    Raises:
        ValueError: the description has a field that is unknown, missing or out of range, or a weight is missing,
            unknown or of another shape than it says; the line names it.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, Weight],
        vectors: dict[str, NDArray[np.float32]],
        *,
        threads: int = 0,
        kv: str = "f32",
        activations: str = "auto",
        kv_limit: int = 0,
        team_of: Decoder | None = None,
        draft_of: Decoder | None = None,
    ) -> None: ...
    @overload
    def step(
        self, batch: Sequence[tuple[int, ArrayLike]], all_logits: bool = False, *, top_k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...
    @overload
    def step(
        self,
        batch: Sequence[tuple[int, ArrayLike]],
        all_logits: bool = False,
        *,
        into: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Appends tokens to sequences and returns logits.

        Args:
            batch: (sequence id, token ids) pairs; a new id begins a sequence.
            all_logits: Logits of every token instead of each entry's last.
            into: An array [n, vocab] without gaps to write the logits into; it is returned. When the call raises, what
                it holds is undefined.
            top_k: Only so many of each row, the largest.

        Returns:
            [n, vocab], in the order of the batch; with `top_k`, ids and logits, [n, top_k] each, falling, of equal
            ones the first.

        Raises:
            ValueError: a token outside the vocabulary, a sequence named twice or grown beyond the context; an array
                that does not fit.
            CacheFull: the keys and values would take more than `kv_limit`.
        """

    # What `gossamer.engine` says of these holds.
    def encode(
        self,
        inputs: Sequence[ArrayLike],
        types: Sequence[ArrayLike] | None = None,
        adapters: Sequence[tuple[int, float]] = (),
    ) -> NDArray[np.float32]: ...
    def remember(self, batch: Sequence[tuple[int, ArrayLike]]) -> None: ...
    def fork(self, seq: int, to: int, length: int) -> None: ...
    def rollback(self, seq: int, n: int) -> None: ...
    def shortest(self, seq: int) -> int: ...
    def free(self, seq: int) -> None: ...
    def save(self, seq: int, length: int) -> NDArray[np.uint8]: ...
    def restore(self, seq: int, data: NDArray[np.uint8], length: int) -> None: ...
    def length(self, seq: int) -> int: ...
    def embed(self, tokens: ArrayLike, sequence_length: int = 0) -> NDArray[np.float32]: ...
    def forward_block(
        self,
        index: int,
        hidden: ArrayLike,
        capture: Sequence[str] = ...,
        sequence_length: int = 0,
        memory: ArrayLike | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]: ...
    def block_inputs(
        self,
        index: int,
        hidden: ArrayLike,
        capture: Sequence[str],
        sequence_length: int = 0,
        memory: ArrayLike | None = None,
    ) -> dict[str, NDArray[np.float32]]: ...
    def norm(self, hidden: ArrayLike) -> NDArray[np.float32]: ...
    def head(self, hidden: ArrayLike) -> NDArray[np.float32]: ...
    def set_weight(self, name: str, weight: Weight) -> None: ...
    def add_adapter(self, weights: dict[str, Weight], vectors: dict[str, NDArray[np.float32]] = ...) -> int:
        """Adds parts of blocks' linears for sequences that choose them; returns the adapter's number.

        Args:
            weights: Of a linear NAME, "layers.3.q": "NAME.low_rank_u" [rows, rank] and "NAME.low_rank_v" [rank, cols];
                "NAME.delta_1", "NAME.delta_2", … [rows, cols].
            vectors: "NAME.bias" [rows].

        Raises:
            ValueError: there is no such linear, or a shape is another one; nothing has changed then.
        """

    def remove_adapter(self, adapter: int) -> None: ...
    def adapter_bytes(self, adapter: int) -> int: ...
    def choose(self, seq: int, adapters: Sequence[tuple[int, float]]) -> None: ...
    def kv_bytes_of(self, tokens: int, step: int) -> int: ...
    def kv_growth(self, seq: int, tokens: int, step: int, forked: int = 0) -> int: ...
    def kv_bytes_read(self, tokens: int) -> int: ...
    def kernels(self) -> list[tuple[str, str]]:
        """Returns (weight name, kernel) pairs."""

    @property
    def vocab(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def kv(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads; the embedding's row is not counted."""

    @property
    def encoder(self) -> Decoder | None:
        """The encoder that it reads, whose blocks can be walked; it shares threads and turns."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that sequences have now; what forks share counts once."""

    @property
    def kv_limit(self) -> int: ...
