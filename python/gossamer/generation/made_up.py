"""Inputs and tokens that say nothing: what a model is timed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..arch.spec import Transformer


def any_input(config: Transformer, tokens: int) -> NDArray[Any] | None:
    """Returns an input to time a model with: so many tokens, or a window of silence; None where there is no encoder."""
    encoder = config.encoder
    if encoder is None:
        return None
    if encoder.embedding.mel is not None:
        return np.zeros((2 * encoder.context, encoder.embedding.mel.bins), np.float32)
    return np.arange(min(tokens, encoder.context), dtype=np.int32) % encoder.vocab


def any_tokens(vocab: int, at: int, count: int, sequence: int = 0) -> NDArray[np.int32]:
    """Returns token ids [count] of a sequence, from a position on; those of another sequence are others."""
    return ((100 + (at + np.arange(count)) * 37 + 11 * sequence) % vocab).astype(np.int32)
