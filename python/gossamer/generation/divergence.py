"""How far a model's predictions are from another's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROWS = 8  # of logits at a time: what is computed from them stays in the cache


def mean_divergence(dense: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Returns KL(dense || softmax(logits)) in nats, the mean over tokens.

    Args:
        dense: Logarithms of probabilities, [tokens, vocab].
        logits: [tokens, vocab].
    """
    total = 0.0
    for start in range(0, len(dense), _ROWS):
        part = slice(start, start + _ROWS)
        moved = dense[part] - log_probabilities(logits[part])
        moved *= np.exp(dense[part])
        total += float(moved.sum(dtype=np.float64))
    return total / len(dense)


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the logarithms of softmax(logits), [tokens, vocab]."""
    logits = logits - logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits
