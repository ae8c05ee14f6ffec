"""Weights and kernels in plain numpy: what the native formats and kernels are compared with.

`pack` is a second, slow writer of every format, straight from docs/format.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMATS = ("dense", "bitmap", "csr", "nm")
TYPES = ("f32", "bf16", "f16", "int8", "int4")
INTEGER = ("int8", "int4")
ROWS, WORD, BLOCK, SLOT, SPARE = 16, 4, 64, 4, 64
WIDTH = {"f32": np.uint32, "bf16": np.uint16, "f16": np.uint16, "int8": np.uint8, "int4": np.uint8}

Array = NDArray[Any]


def to_bf16(values: Array) -> Array:
    """Rounds finite float32 to bf16 bits, nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def raw_values(values: Array, type: str) -> Array:
    """Raw elements of float values in a float type; -0.0 becomes 0."""
    values = np.where(values == 0, np.float32(0), values.astype(np.float32))
    if type == "f32":
        return values.view(np.uint32)
    raw = to_bf16(values) if type == "bf16" else values.astype(np.float16).view(np.uint16)
    return np.where((raw & 0x7FFF) == 0, np.uint16(0), raw)


def raw_codes(codes: Array, type: str) -> Array:
    """Raw elements of integer codes."""
    return codes.view(np.uint8) & np.uint8(0xFF if type == "int8" else 0x0F)


def _padded(matrix: Array) -> Array:
    rows, cols = matrix.shape
    return np.pad(matrix, ((0, -rows % ROWS), (0, -cols % BLOCK)))


def _padded_stream(values: Array, spare: int = 0) -> Array:
    size = values.nbytes + spare
    return np.concatenate([values, np.zeros((size + -size % 64 - values.nbytes) // values.itemsize, values.dtype)])


def _words(panel: Array) -> Array:
    """A panel [16, cols] as words [cols / 4, 64]: bit 4r + k is row r, input k."""
    return panel.reshape(ROWS, -1, WORD).transpose(1, 0, 2).reshape(-1, ROWS * WORD)


def _value_streams(panels: list[Array], type: str) -> list[Array]:
    """Bytes of each value stream; int4 shares them between two panels."""
    if type != "int4":
        return [np.ascontiguousarray(values).view(np.uint8) for values in panels]
    streams = []
    for low, high in zip(panels[::2], [*panels[1::2], np.zeros(0, np.uint8)], strict=False):
        stream = np.zeros(max(len(low), len(high)), np.uint8)
        stream[: len(low)] |= low
        stream[: len(high)] |= high << 4
        streams.append(stream)
    return streams


def stored_positions(raw: Array, format: str, pattern: tuple[int, int] | None) -> Array:
    """Which positions of the padded matrix are stored."""
    padded = _padded(raw)
    if format == "dense":
        return np.ones(padded.shape, bool)
    stored = padded != 0
    if format == "nm":
        n, m = pattern or (0, 0)
        for group in stored.reshape(-1, m):
            group[np.flatnonzero(~group)[: n - group.sum()]] = True
    return stored


def pack(
    raw: Array, scales: Array | None, format: str, type: str, group: int, pattern: tuple[int, int] | None = None
) -> dict[str, Array]:
    """The streams of raw elements [rows, cols], with scales [rows, groups] for integer types."""
    padded, stored = _padded(raw), stored_positions(raw, format, pattern)
    panels = range(0, len(padded), ROWS)
    out: dict[str, Array] = {}
    if scales is not None:
        groups = 1 if group == 0 else -(-padded.shape[1] // group)
        full = np.pad(scales, ((0, -len(scales) % ROWS), (0, groups - scales.shape[1])))
        tiles = full.reshape(-1, ROWS, groups).transpose(0, 2, 1)
        out["scales"] = _padded_stream(np.ascontiguousarray(tiles).reshape(-1))
    if format == "csr":
        return {**out, **_pack_csr(padded, type, 32 if scales is not None and group == 32 else BLOCK)}
    values = [_words(padded[p : p + ROWS])[_words(stored[p : p + ROWS])] for p in panels]
    streams = _value_streams(values, type)
    out["values"] = _padded_stream(np.concatenate(streams), SPARE)
    if format != "dense":
        bits = np.concatenate([_words(stored[p : p + ROWS]) for p in panels])
        masks = np.packbits(bits, axis=1, bitorder="little").reshape(-1).view(np.uint64)
        out["masks"] = _padded_stream(masks)
    if format == "bitmap":
        out["offsets"] = _padded_stream(np.cumsum([0, *map(len, streams)], dtype=np.uint64))
    return out


def _pack_csr(padded: Array, type: str, block: int) -> dict[str, Array]:
    counts: list[int] = []
    lanes: list[int] = []
    columns: list[int] = []
    slots, steps = [0], [0]
    values: list[Array] = []
    for first in range(0, len(padded), ROWS):
        mine: list[int] = []
        for start in range(0, padded.shape[1], block):
            found = [np.flatnonzero(padded[first + r, start : start + block]) for r in range(ROWS)]
            depth = max(-(-len(f) // SLOT) for f in found)
            counts.append(depth)
            for step in range(depth):
                rows = [r for r in range(ROWS) if len(found[r]) > step * SLOT]
                lanes.append(sum(1 << r for r in rows))
                for r in rows:
                    slot = found[r][step * SLOT : (step + 1) * SLOT]
                    columns += [*slot.tolist(), *[0] * (SLOT - len(slot))]
                    mine += [*padded[first + r, start + slot].tolist(), *[0] * (SLOT - len(slot))]
        slots.append(len(columns) // SLOT)
        steps.append(len(lanes))
        values.append(np.array(mine, WIDTH[type]))
    streams = _value_streams(values, type)
    return {
        "counts": _padded_stream(np.array(counts, np.uint8)),
        "lanes": _padded_stream(np.array(lanes, np.uint16)),
        "columns": _padded_stream(np.array(columns, np.uint8), SPARE),
        "values": _padded_stream(np.concatenate(streams), SPARE),
        "slots": _padded_stream(np.array(slots, np.uint64)),
        "steps": _padded_stream(np.array(steps, np.uint64)),
        "offsets": _padded_stream(np.cumsum([0, *map(len, streams)], dtype=np.uint64)),
    }


def random_matrix(rows: int, cols: int, sparsity: float, seed: int = 0) -> Array:
    """Seeded float32 normals with a share of zeros; row 0 is empty when there are more rows and any zeros."""
    rng = np.random.default_rng([seed, rows, cols])
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    values[rng.random(values.shape) < sparsity] = 0
    if sparsity and rows > 1:
        values[0] = 0
    return values


def prune_nm(values: Array, n: int, m: int) -> Array:
    """Keeps the n largest magnitudes of every m inputs."""
    rows, cols = values.shape
    groups = np.pad(values, ((0, 0), (0, -cols % m))).reshape(rows, -1, m).copy()
    order = np.argsort(-np.abs(groups), axis=2, kind="stable")
    np.put_along_axis(groups, order[:, :, n:], 0, axis=2)
    return groups.reshape(rows, -1)[:, :cols]
