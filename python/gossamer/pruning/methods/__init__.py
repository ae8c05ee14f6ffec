"""The pruning methods, one file each: one matrix and the second moments of its inputs in, the pruned matrix out.

An entry that is zero in the checkpoint stays zero: those that see inputs are told with `present`, and to `magnitude`
it has the lowest score.
"""

from __future__ import annotations

from . import admm, sparsegpt, wanda
from .method import Method

CALIBRATED: dict[str, Method] = {"wanda": wanda.METHOD, "sparsegpt": sparsegpt.METHOD, "admm": admm.METHOD}
"""Those that look at inputs."""

METHODS = ("magnitude", *CALIBRATED)
DEFAULT_METHOD = "admm"
