"""What tells one model from another: for files that are of use to the model alone that they were made with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from .made_up import any_input

if TYPE_CHECKING:
    from .adapters import Chosen
    from .model import Model

_PROBES = 16  # tokens whose logits tell one model from another


def logits_digest(model: Model, adapters: Chosen = None) -> str:
    """Returns what two runs share whose answers are the same: the digest of a few tokens' logits, to the bit."""
    probe = np.linspace(0, model.config.vocab - 1, min(_PROBES, model.config.context)).astype(np.int32)
    logits = model.logits(probe, adapters, any_input(model.config, _PROBES))
    return hashlib.sha256(logits.tobytes()).hexdigest()


def model_digest(model: Model, logits: str) -> str:
    """Returns the digest of all that keys and values come from: every weight, and what the engine makes of them.

    Args:
        model: The model.
        logits: `logits_digest` of it and its adapters.
    """
    digest = hashlib.sha256(f"{model.decoder.kv} {model.config.to_dict()} ".encode())
    for name in sorted(model.weights):
        for stream, values in sorted(model.weights[name].streams().items()):
            digest.update(f"{name} {stream} {values.size} ".encode())
            digest.update(values.data)
    digest.update(logits.encode())  # vectors, adapters, types and kernels
    return digest.hexdigest()
