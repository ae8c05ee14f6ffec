"""Where torch works."""

from __future__ import annotations

import torch

from ..errors import GossamerError


def find_device(name: str) -> torch.device:
    """Returns the device called "cpu" or "cuda", or for "auto" a GPU where there is one.

    Raises:
        GossamerError: there is no GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise GossamerError("device cuda: torch finds no CUDA device here")
    return torch.device(name)
