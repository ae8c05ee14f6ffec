"""Numbers that numpy lacks, from their bits, and whole numbers out of packed words."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...safetensors_io import from_bfloat16
from .tensor import Tensor

FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# Magnitudes of 4-bit floats by the low three bits, doubled, so that they are whole; the fourth bit is the sign.
FP4_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


@cache
def _table(dtype: str) -> NDArray[np.float32]:
    """All 256 values of an 8-bit float type."""
    bits = np.arange(256)
    values: NDArray[np.float32]
    if dtype == "F8_E5M2":  # the upper half of float16
        values = (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
        return values
    if dtype == "F8_E8M0":
        values = np.ldexp(1.0, np.minimum(bits, 254) - 127).astype(np.float32)
        values[255] = np.nan
        return values
    sign, exponent, mantissa = bits >> 7, bits >> 3 & 15, bits & 7
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10)).astype(np.float32)
    values[(bits & 127) == 127] = np.nan  # this variant has no infinities
    return np.where(sign == 1, -values, values)


def floats_of(tensor: Tensor, raw: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the values of raw elements of a tensor's type, scales not applied.

    Raises:
        GossamerError: it has no float type.
    """
    if tensor.dtype == "F32":
        return np.require(raw, np.float32, "A")
    if tensor.dtype == "F16":
        return raw.astype(np.float32)
    values: NDArray[np.float32]
    if tensor.dtype == "BF16":
        return from_bfloat16(raw)
    if tensor.dtype in ("F8_E4M3", "F8_E5M2"):
        values = _table(tensor.dtype)[raw]
        return values
    raise tensor.bad(f"is of type {tensor.dtype}; weights must be {', '.join(FLOATS[:-1])} or {FLOATS[-1]}")


def scales_of(tensor: Tensor) -> NDArray[np.float32]:
    """Returns scales, also those that are powers of two, stored as their exponents.

    Raises:
        GossamerError: they have another type, or one is not finite.
    """
    exponents = tensor.dtype in ("U8", "F8_E8M0")
    scales = _table("F8_E8M0")[tensor.raw()] if exponents else floats_of(tensor, tensor.raw())
    if not np.isfinite(scales).all():
        raise tensor.bad("has scales that are NaN or infinite")
    return scales


def unpack(words: NDArray[Any], bits: int, count: int, *, straddle: bool = True) -> NDArray[np.uint8]:
    """Returns the numbers of packed words, low bits first, along the last axis.

    Args:
        words: Of 32 bits, [..., words].
        bits: Of a number, from 1 to 8.
        count: Numbers of a row; the words must have room for them.
        straddle: Whether a number may begin in one word and end in the next; otherwise a word's upper bits are left.
    """
    lead = words.shape[:-1]
    octets = np.ascontiguousarray(words).astype("<u4", casting="unsafe").view(np.uint8)
    if bits == 8:
        return octets[..., :count]
    if bits in (1, 2, 4):
        parts: NDArray[np.uint8] = (octets[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8(
            (1 << bits) - 1
        )
        return parts.reshape(*lead, -1)[..., :count]
    each = np.unpackbits(octets, axis=-1, bitorder="little")
    if straddle:
        each = each[..., : count * bits].reshape(*lead, count, bits)
    else:
        fit = 32 // bits
        each = each.reshape(*lead, -1, 32)[..., : fit * bits].reshape(*lead, -1, bits)[..., :count, :]
    numbers: NDArray[np.uint8] = np.packbits(each, axis=-1, bitorder="little")[..., 0]
    return numbers
