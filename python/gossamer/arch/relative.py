"""Relative biases: the buckets that distances come in."""

from __future__ import annotations

import math

import numpy as np

from .spec import RelativeBias


def relative_bias(buckets: int, distance: int, causal: bool) -> RelativeBias:
    """Returns the buckets of T5: half of them a position each, the others of widths that grow up to some distance.

    Args:
        buckets: How many there are; where attention is not causal, half of them are for keys behind the query.
        distance: From which on all positions are in the last bucket.
        causal: Whether no token sees those behind it.
    """
    count = buckets if causal else buckets // 2
    exact = count // 2
    found = np.arange(max(distance, exact) + 1)
    far = found[exact:].astype(np.float32)  # in the order of float32 operations that checkpoints were trained with
    with np.errstate(divide="ignore"):
        grown = np.log(far / np.float32(exact)) / np.float32(math.log(distance / exact)) * np.float32(count - exact)
    found[exact:] = np.minimum(exact + grown.astype(np.int64), count - 1)
    back = tuple(map(int, found))
    return RelativeBias(buckets, back, () if causal else (0, *(count + bucket for bucket in back[1:])))
