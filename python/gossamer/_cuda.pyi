"""The kernels for GPUs, over addresses and streams as numbers. `gossamer.gpu.cuda` is the interface to use.

Every function with a `device` runs there and leaves the current device as it was; kernels are queued on `stream` (0 is
the default one) and may be captured in a CUDA graph.
"""

from typing import Any

__version__: str
__source_hash__: str
MAX_TOKENS: int
MAX_FEW_TOKENS: int
CHUNK_COLS: int
MAX_HEAD_WIDTH: int
SPARE_WORDS: int

def kernels() -> list[str]:
    """Returns the names of the linear kernels: <format>_linear_<weight>_<activation>__cuda."""

def device_count() -> int:
    """Returns the number of GPUs.

    Raises:
        RuntimeError: there is no driver, or it cannot be used; the text says why.
    """

def device_facts(device: int) -> dict[str, Any]:
    """Returns name, capability (major, minor), multiprocessors, and bytes of memory and l2 of a GPU."""

class DeviceWeight:
    """Size and layout of a weight on a GPU; csrc/kernels/cuda/device_weight.h describes the records."""

    def __init__(self, layout: str, type: str, rows: int, cols: int, group: int = 0) -> None:
        """Fixes layout "bitmap" or "nm24" and the size.

        Raises:
            ValueError: no GPU holds such a weight.
        """

    def attach(self, records: int, offsets: int, scales: int, words: int, largest: list[int]) -> None:
        """Names the addresses that calls read from; `words` and `largest` are what `record_offsets` found."""

    def plan_splits(self, multiprocessors: int) -> int:
        """Returns into how many shares a GPU with so many multiprocessors should cut the inputs."""

    def partials(self, splits: int, tokens: int) -> int:
        """Returns the floats of workspace that a call with more than one split needs."""

    @property
    def layout(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def records(self) -> int:
        """Tiles of 16 rows x 64 inputs."""

    @property
    def words(self) -> int:
        """32-bit words of all records; 0 for layout "bitmap" before `attach`."""

    @property
    def stage(self) -> int:
        """Tiles that a warp copies at a time."""

    @property
    def counters(self) -> int:
        """32-bit words of counters that a call with more than one split needs, zero before the first."""

def record_offsets(
    weight: DeviceWeight,
    pattern: tuple[int, int] | None,
    masks: int,
    sizes: int,
    offsets: int,
    largest: int,
    device: int,
    stream: int,
) -> None:
    """Finds where each record of layout "bitmap" begins: u32 sizes[records], offsets[records + 1].

    `largest[3]`, zero before, gets the bytes that stages of 1, 2 and 4 tiles may need.
    """

def make_records(
    weight: DeviceWeight,
    pattern: tuple[int, int] | None,
    masks: int,
    values: int,
    value_offsets: int,
    offsets: int,
    records: int,
    device: int,
    stream: int,
) -> None:
    """Writes the records, whose memory is zero before, from the streams of a bitmap weight, or nm with a pattern."""

def linear(
    weight: DeviceWeight,
    x: int,
    x_stride: int,
    type: str,
    tokens: int,
    y: int,
    y_stride: int,
    bias: int,
    splits: int,
    partials: int,
    counters: int,
    device: int,
    stream: int,
) -> None:
    """Multiplies x [tokens, cols] of type f16 or bf16 by the weight, adds the bias (0 for none): y [tokens, rows].

    Raises:
        ValueError: a size is not possible, or no kernel takes these types.
        RuntimeError: the launch failed.
    """

def add_norm(
    states: int,
    update: int,
    weight: int,
    out: int,
    tokens: int,
    width: int,
    eps: float,
    type: str,
    device: int,
    stream: int,
) -> None:
    """Adds update (0 for none) to states and writes their RMS norm times weight to out.

    All are [tokens, width] of type f16 or bf16, and the weight is float32 [width].
    """

def rotate(
    qkv: int,
    cos: int,
    sin: int,
    places: int,
    queries: int,
    keys: int,
    values: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    half: int,
    capacity: int,
    type: str,
    device: int,
    stream: int,
) -> None:
    """Turns queries and keys by their angles, and writes keys and values where the cache has the tokens' places.

    qkv [tokens, heads + 2 kv_heads, width]; cos and sin float32 [tokens, half]; places int64 [tokens], below capacity;
    queries [heads, tokens, width]; keys and values [kv_heads, capacity, width].
    """

def attend(
    queries: int,
    keys: int,
    values: int,
    place: int,
    out: int,
    heads: int,
    kv_heads: int,
    width: int,
    capacity: int,
    scale: float,
    splits: int,
    partials: int,
    counters: int,
    type: str,
    device: int,
    stream: int,
) -> None:
    """Writes one token's attention [heads, width] over the positions of a cache up to its own.

    queries [heads, width]; keys and values [kv_heads, capacity, width], width up to MAX_HEAD_WIDTH; place int64 [1];
    partials [splits, kv_heads * (heads / kv_heads + 3), width + 2] are enough, and counters [heads], zero before.
    """

def gate(gate_up: int, out: int, tokens: int, width: int, type: str, device: int, stream: int) -> None:
    """Writes silu(gate) * up as [tokens, width] for gate_up [tokens, 2, width] of type f16 or bf16."""

def nonzeros_linear(
    weight_type: str,
    rows: int,
    cols: int,
    group: int,
    offsets: int,
    steps: int,
    values: int,
    scales: int,
    x: int,
    x_stride: int,
    type: str,
    tokens: int,
    y: int,
    y_stride: int,
    bias: int,
    rows_each: int,
    partials: int,
    counters: int,
    device: int,
    stream: int,
) -> None:
    """Multiplies as `linear` does, up to MAX_FEW_TOKENS tokens, from non-zeros (csrc/kernels/cuda/nonzeros.h).

    A warp works on `rows_each` rows. Beyond CHUNK_COLS inputs it needs partials [chunks, tokens, rows] and counters
    [ceil(rows / 16)], zero before the first call.
    """

def expand(weight: DeviceWeight, type: str, scaled: bool, dense: int, stride: int, device: int, stream: int) -> None:
    """Writes the whole matrix as f16 or bf16 [rows, stride]; codes are multiplied by their scales if `scaled`."""
