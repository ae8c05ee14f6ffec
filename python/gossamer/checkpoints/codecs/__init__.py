"""Stored forms of tensors, a file each, found by the tensors that are there.

A codec is a function that takes the parts of its form out of a checkpoint's tensors and puts in what they make, which
is computed when it is asked for. Forms that others build on come first: a bit mask may hold quantized values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import awq, bitmask, bitsandbytes, fp4, gptq, left_out, marlin_24, masked, pack_quantized, scaled, torchao
from .claims import Claims
from .tensor import File, StoredTensor, Tensor, Tensors, Zeros

_CODECS = (
    bitmask.decode,
    masked.decode,
    marlin_24.decode,
    pack_quantized.decode,
    fp4.decode,
    bitsandbytes.decode,
    gptq.decode,
    awq.decode,
    torchao.decode,
    scaled.decode,
    left_out.decode,
)

__all__ = ["File", "StoredTensor", "Tensor", "Tensors", "Zeros", "decode"]


def decode(tensors: Tensors, folder: Path, config: dict[str, Any]) -> list[str]:
    """Puts dense tensors in the place of all parts that are known.

    Args:
        tensors: As they are stored; changes.
        folder: Where they lie.
        config: Content of config.json.

    Returns:
        Notes: what the files say that is not so, and what was left out.

    Raises:
        GossamerError: parts contradict each other or the config, or the config asks for what there is not.
    """
    claims = Claims(folder, config)
    for codec in _CODECS:
        codec(tensors, claims)
    claims.conclude()
    return claims.notes
