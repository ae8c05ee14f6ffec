"""What this machine reaches: bandwidth of its memory and caches, and the own speed of each kernel; measured once.

A product of a matrix and a vector takes as long as the slower of two things: reading the weights, and working on them.
So reads that do nothing with the bytes say how fast a model can run at best, and kernels on data that lies in a core's
own cache say which formats keep up with the memory. Both are kept under $GOSSAMER_HOME for this machine and this build.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import GossamerError
from ..folders import home, write_file
from ..progress import Progress
from .memory import available_memory as _available_memory
from .threads import usable_threads

_SCHEMA = 2  # raised when what is measured, or how, changes: what was kept is then measured again

_L2, _LAST_LEVEL = 1 << 20, 32 << 20  # where the system does not tell
_MEMORY = 1 << 30  # bytes of the buffer that stands for memory, unless that is too little or too much
_ZEROS = {"dense": 0.0, "bitmap": 0.5, "csr": 0.95, "nm": 0.5}  # of the matrices that kernels are timed on
PATTERN = (2, 4)  # of "nm"
_COLS, GROUP = 1024, 64
_KERNEL_SECONDS = 0.05


@dataclass(frozen=True)
class Reads:
    """Measured read bandwidth of some threads together, in 1e9 bytes a second.

    Attributes:
        threads: How many read.
        memory: From a buffer well beyond the last-level cache.
        cache: From one that lies in the last-level cache, and beyond the cores' own.
    """

    threads: int
    memory: float
    cache: float


@dataclass(frozen=True)
class KernelRate:
    """What one kernel reaches on one core, for one token, with weights that lie in the core's own cache.

    Attributes:
        kernel: Its name, as in `_core.kernels()`.
        chosen: Whether it is the one that runs on this machine, the best of its kind.
        zeros: Fraction of zeros in the weights.
        bytes_per_position: Bytes read for each position of the matrix, zeros included.
        positions_per_second: Positions of the matrix, zeros included, in 1e9 a second.
        wins_below: Bandwidth a core, in 1e9 bytes a second, below which it is faster than dense weights of the same
            type; None when it is so at any bandwidth, 0 when at none. Dense kernels have None.
    """

    kernel: str
    chosen: bool
    zeros: float
    bytes_per_position: float
    positions_per_second: float
    wins_below: float | None = None

    @property
    def gigabytes_per_second(self) -> float:
        """Bytes of weights worked through, in 1e9 a second."""
        return self.bytes_per_position * self.positions_per_second


@dataclass(frozen=True)
class Roofline:
    """What `roofline` measured.

    Attributes:
        machine: What the figures hold for: processor, cores, threads, isa, native (a hash of the native module).
        date: When, in ISO 8601.
        last_level_bytes: Size of the last-level cache, all of its instances together.
        memory_bytes: Size of the buffer that stood for memory.
        reads: Bandwidth by number of threads, rising.
        kernels: Rates by kernel, in the registry's order.
        notes: What was out of the ordinary in this call; not kept.
    """

    machine: dict[str, Any]
    date: str
    last_level_bytes: int
    memory_bytes: int
    reads: tuple[Reads, ...]
    kernels: tuple[KernelRate, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def roof(self, size: float) -> float:
        """Returns the most that this machine can read, in 1e9 bytes a second, with as many threads as pay.

        Args:
            size: Bytes that are read again and again: what fits into the last-level cache comes from there.
        """
        cached = size <= self.last_level_bytes
        return max(row.cache if cached else row.memory for row in self.reads)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON-ready values."""
        document = asdict(self)
        for row, rate in zip(document["kernels"], self.kernels, strict=True):
            row["gigabytes_per_second"] = rate.gigabytes_per_second
        return document


def roofline(*, refresh: bool = False, threads: int = 0, progress: Progress | None = None) -> Roofline:
    """Measures what this machine reaches, in about half a minute, or returns what was measured before.

    Args:
        refresh: Measure in any case.
        threads: Most threads to read with, at most one a processor; 0 for as many as pay.
        progress: Called with (done, total, what).

    Returns:
        The figures, kept under $GOSSAMER_HOME from then on where that can be written.

    Raises:
        GossamerError: threads out of range.
    """
    machine = machine_key(usable_threads(threads))
    path = _path(machine)
    notes = []
    if not refresh:
        try:
            return _read(path, machine)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            notes.append(f"{path}: cannot be used, so it is measured again: {error}")
    result = _measure(machine, progress or (lambda *_: None))
    try:
        _write(path, result)
    except OSError as error:
        notes.append(f"{path}: cannot be kept for the next time: {error.strerror or error} (see GOSSAMER_HOME)")
    return replace(result, notes=(*result.notes, *notes))


def cached() -> Roofline | None:
    """Returns what was measured before on this machine with the default threads; None where there is nothing usable."""
    machine = machine_key()
    try:
        return _read(_path(machine), machine)
    except (GossamerError, OSError, ValueError):
        return None


def processor() -> str:
    """Returns the processor's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine_key(threads: int = 0) -> dict[str, Any]:
    """Returns what measured figures hold for: this processor, and this build.

    Args:
        threads: That were measured with at most; 0 is the default.
    """
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": threads or _core.default_threads(),
        "isa": _core.isa(),
        "native": hashlib.sha256(f"{_core.__version__} {_core.__source_hash__}".encode()).hexdigest()[:16],
    }


# --- the kept file ----------------------------------------------------------------------------------------------------


def kept_file(kind: str, key: Any) -> Path:
    """Returns the file under $GOSSAMER_HOME that keeps figures of a kind for what `key` says."""
    text = json.dumps(key, sort_keys=True)
    return home() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _path(machine: dict[str, Any]) -> Path:
    return kept_file("roofline", [_SCHEMA, machine])


def _write(path: Path, result: Roofline) -> None:
    document = {"schema": _SCHEMA, **result.to_dict()}
    del document["notes"]
    write_file(path, json.dumps(document, indent=1) + "\n")


def _read(path: Path, machine: dict[str, Any]) -> Roofline:
    """Raises OSError, or ValueError where the file is not what `_write` wrote for this machine."""
    document = json.loads(path.read_text(encoding="utf-8"))
    try:
        if document["schema"] != _SCHEMA or document["machine"] != machine:
            raise ValueError("it belongs to another machine or version")
        reads = tuple(
            Reads(_checked(row["threads"], int), _checked(row["memory"]), _checked(row["cache"]))
            for row in document["reads"]
        )
        kernels = tuple(
            KernelRate(
                kernel=_checked(row["kernel"], str),
                chosen=_checked(row["chosen"], bool),
                zeros=_checked(row["zeros"]),
                bytes_per_position=_checked(row["bytes_per_position"]),
                positions_per_second=_checked(row["positions_per_second"]),
                wins_below=None if row["wins_below"] is None else _checked(row["wins_below"]),
            )
            for row in document["kernels"]
        )
        result = Roofline(
            machine=machine,
            date=_checked(document["date"], str),
            last_level_bytes=_checked(document["last_level_bytes"], int),
            memory_bytes=_checked(document["memory_bytes"], int),
            reads=reads,
            kernels=kernels,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks or garbles {error}") from None
    if not reads or not kernels:
        raise ValueError("it holds no figures")
    return result


def _checked(value: Any, type_: Any = float) -> Any:
    """The value, or ValueError where it is of another type or no finite number of at least zero."""
    if type(value) is not type_ or (type_ in (int, float) and not 0 <= value < math.inf):
        raise ValueError(f"{value!r} is no {type_.__name__} that was measured")
    return value


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(machine: dict[str, Any], progress: Progress) -> Roofline:
    notes = []
    caches = _caches()
    if not caches:
        notes.append("the system does not tell the sizes of its caches; usual ones are assumed")
    l2, last_level = min(caches.get(2, [_L2])), last_level_bytes()
    available = _available_memory()
    memory = max(min(max(_MEMORY, 4 * last_level), (4 * _MEMORY if available is None else available) // 4), 1 << 20)
    if memory < 2 * last_level:
        notes.append(f"too little free memory for a buffer beyond the last-level cache of {last_level >> 20} MiB")
    counts = _thread_counts(machine["threads"])
    names = _core.kernels()
    total = len(counts) + len(names)
    reads = []
    for done, count in enumerate(counts):
        progress(done, total, f"reading memory, threads: {count}")
        near = min(max(last_level // 4, 4 * l2 * count), last_level // 2)
        reads.append(Reads(count, _bandwidth(memory, count), _bandwidth(near, count)))
    kernels = []
    chosen = {
        name.partition("__")[0]: name for name in names
    }  # a tier comes behind those that it builds on, and the last runs
    weights: dict[tuple[str, str], _core.Weight] = {}
    for done, name in enumerate(names, len(counts)):
        progress(done, total, f"timing {name}")
        format_, _, type_, _ = name.partition("__")[0].split("_")
        if (format_, type_) not in weights:
            weights[format_, type_] = _weight(format_, type_, l2 // 2)
        weight = weights[format_, type_]
        positions = weight.rows * weight.cols
        rate = positions / _kernel_seconds(name, weight) / 1e9
        kernels.append(KernelRate(name, name in chosen.values(), _ZEROS[format_], weight.nbytes / positions, rate))
    return Roofline(
        machine=machine,
        date=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        last_level_bytes=last_level,
        memory_bytes=memory,
        reads=tuple(reads),
        kernels=tuple(_against_dense(kernels)),
        notes=tuple(notes),
    )


def _bandwidth(size: int, threads: int) -> float:
    """Bandwidth of the better kind of read, plain or prefetched; the two take turns."""
    repeats = max(5, min(200, (256 << 20) // size))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for prefetch in (False, True, False, True):
        seconds[prefetch] += _core.read_bandwidth(size, threads, prefetch, repeats)[1:].tolist()
    return size / min(map(_undisturbed, seconds.values())) / 1e9


def _kernel_seconds(name: str, weight: _core.Weight) -> float:
    """Seconds of one product on one core."""
    once = _core.time_linears([weight], threads=1, repeats=2, kernel=name)[0].min()
    repeats = max(3, min(5000, int(_KERNEL_SECONDS / once)))
    return _undisturbed(_core.time_linears([weight], threads=1, repeats=repeats, kernel=name)[0])


def _undisturbed(seconds: Sequence[float] | NDArray[np.float64]) -> float:
    """The fastest tenth: what is measured once and kept should not depend on what else ran that minute."""
    return float(np.quantile(np.asarray(seconds), 0.1))


def _weight(format_: str, type_: str, size: int) -> _core.Weight:
    """A random weight of about `size` bytes."""
    pattern = PATTERN if format_ == "nm" else None

    def packed(rows: int) -> _core.Weight:
        return _core.pack(random_values(rows, _COLS, _ZEROS[format_], pattern), format_, type_, GROUP, pattern)

    few = packed(32)
    return packed(max(1, min(size, 8 << 20) // few.nbytes) * 32)


def random_values(rows: int, cols: int, zeros: float, pattern: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Returns seeded normals with zeros at random places, for kernels to be timed on.

    Args:
        rows: Outputs.
        cols: Inputs.
        zeros: Their share.
        pattern: (N, M) instead: N of every M inputs are kept.
    """
    random = np.random.default_rng(0)
    values = random.standard_normal((rows, cols), np.float32)
    if pattern is None:
        values[random.random(values.shape, np.float32) < zeros] = 0
    else:
        kept, of = pattern
        order = random.random((rows, cols // of, of), np.float32).argsort(2)
        values[order.reshape(rows, cols) >= kept] = 0
    return values


def _against_dense(rates: list[KernelRate]) -> list[KernelRate]:
    """Fills in `wins_below`: beside the dense kernel of the same tier where there is one, otherwise the chosen one."""
    dense = {rate.kernel: rate for rate in rates if rate.kernel.startswith("dense_")}
    best = {name.partition("__")[0]: rate for name, rate in dense.items() if rate.chosen}

    def compared(rate: KernelRate) -> KernelRate:
        if rate.kernel in dense:
            return rate
        name = f"dense_{rate.kernel.partition('_')[2]}"
        return replace(rate, wins_below=_wins_below(rate, dense.get(name) or best[name.partition("__")[0]]))

    return [compared(rate) for rate in rates]


def _wins_below(sparse: KernelRate, dense: KernelRate) -> float | None:
    # Fewer bytes win until the bandwidth lets the dense kernel go as fast as the sparse one goes by itself.
    if sparse.bytes_per_position >= dense.bytes_per_position:
        return 0.0
    if sparse.positions_per_second >= dense.positions_per_second:
        return None
    return dense.bytes_per_position * sparse.positions_per_second


def _thread_counts(most: int) -> list[int]:
    """Every number up to 8, then doubling, and the most."""
    doubling = (8 << power for power in range(1, most.bit_length()))
    return sorted({*range(1, min(most, 8) + 1), *(count for count in doubling if count < most), most})


def last_level_bytes() -> int:
    """Returns the size of the last-level cache, all of its instances that our CPUs share together."""
    caches = _caches()
    return sum(caches.get(max(caches, default=0), [_LAST_LEVEL]))


def _caches() -> dict[int, list[int]]:
    """Sizes in bytes of the data caches of our CPUs by level, shared ones once; empty where the system tells none."""
    found: dict[tuple[int, str], int] = {}
    for cpu in os.sched_getaffinity(0):
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                level, kind, size, shared = (
                    (index / name).read_text(encoding="ascii").strip()
                    for name in ("level", "type", "size", "shared_cpu_list")
                )
                if kind != "Instruction":
                    found[int(level), shared] = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    levels: dict[int, list[int]] = {}
    for (depth, _), length in found.items():
        levels.setdefault(depth, []).append(length)
    return levels
