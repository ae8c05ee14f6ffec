"""What a GPU reaches: the bandwidth of its memory, measured once and kept; and what the planner makes of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import GossamerError
from ..folders import home, write_file
from ..packing.planner import Machine
from .cuda import check_available

_SCHEMA = 1
_SIZE = 1 << 30  # bytes that are read, beyond every cache
_USUAL = 20.0  # bytes a multiprocessor reads, in 1e9 a second, where nothing was measured
_CLOCK = 1.7  # of a multiprocessor, in 1e9 a second

# Positions a clock and multiprocessor, zeros included, counted in the machine code and not measured: docs/gpu.md.
# Dense products keep up with any memory, so theirs is a number out of the way.
_POSITIONS = {"dense": 100.0, "bitmap": 14.0, "nm": 30.0, "csr": 180.0}
_INTEGER_DENSE = 14.0  # as bitmaps without zeros


@dataclass(frozen=True)
class GpuRoof:
    """What was measured on a GPU.

    Attributes:
        gpu: Its name.
        multiprocessors: How many it has.
        bandwidth: Bytes that it reads from memory, in 1e9 a second.
        date: When, in ISO 8601.
    """

    gpu: str
    multiprocessors: int
    bandwidth: float
    date: str


def gpu_roof(device: int = 0, *, refresh: bool = False) -> GpuRoof:
    """Measures a GPU in about a second, or returns what was measured before; kept under $GOSSAMER_HOME.

    Args:
        device: Number of the GPU.
        refresh: Measure in any case.

    Raises:
        GossamerError: no GPU can be used.
    """
    check_available()
    found = None if refresh else cached(device)
    if found is not None:
        return found
    facts = _facts(device)
    date = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    roof = GpuRoof(facts["name"], facts["multiprocessors"], _read_bandwidth(device), date)
    path = _path(roof.gpu, roof.multiprocessors)
    with contextlib.suppress(OSError):  # measured again the next time
        write_file(path, json.dumps({"schema": _SCHEMA, **asdict(roof)}) + "\n")
    return roof


def cached(device: int = 0) -> GpuRoof | None:
    """Returns what was measured before on a GPU of this kind; None where there is nothing usable, or no GPU."""
    try:
        facts = _facts(device)
        document = json.loads(_path(facts["name"], facts["multiprocessors"]).read_text(encoding="utf-8"))
        roof = GpuRoof(*(document[key] for key in ("gpu", "multiprocessors", "bandwidth", "date")))
        usable = document["schema"] == _SCHEMA and type(roof.bandwidth) is float and 0 < roof.bandwidth < math.inf
    except (GossamerError, ImportError, RuntimeError, OSError, ValueError, KeyError, TypeError):
        return None
    return roof if usable and (roof.gpu, roof.multiprocessors) == (facts["name"], facts["multiprocessors"]) else None


def gpu_machine(device: int = 0) -> Machine:
    """Returns what the planner needs of a GPU: its measured bandwidth, or a usual one, and estimated rates.

    The unit is the whole GPU instead of a core.

    Raises:
        GossamerError: no GPU can be used.
    """
    from ..formats import INTEGER_TYPES, TYPES

    check_available()
    facts, measured = _facts(device), cached(device)
    count = facts["multiprocessors"]
    rates = {
        (format, type): count * _CLOCK * (_INTEGER_DENSE if format == "dense" and type in INTEGER_TYPES else positions)
        for format, positions in _POSITIONS.items()
        for type in TYPES
    }
    return Machine(measured.bandwidth if measured else _USUAL * count, rates, measured=measured is not None)


def _facts(device: int) -> dict[str, Any]:
    from .. import _cuda

    facts: dict[str, Any] = _cuda.device_facts(device)
    return facts


def _path(gpu: str, multiprocessors: int) -> Path:
    key = json.dumps([_SCHEMA, gpu, multiprocessors])
    return home() / "roofline" / f"gpu-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read_bandwidth(device: int) -> float:
    """Bytes that a sum over a long vector reads, in 1e9 a second: the fastest of some passes."""
    import torch

    with torch.cuda.device(device):
        free, _ = torch.cuda.mem_get_info()
        buffer = torch.ones(min(_SIZE, free // 2) // 4, dtype=torch.float32, device="cuda")
        seconds = []
        for _ in range(20):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            buffer.sum()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
    return float(buffer.numel() * 4 / min(seconds) / 1e9)
