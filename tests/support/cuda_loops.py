"""The kernels for GPUs as loops on the processor, of the module `_simt`."""

from __future__ import annotations

from gossamer import _core, _simt
from gossamer.gpu.cuda import CudaWeight


def on_loops(weight: _core.Weight, **options: object) -> CudaWeight:
    return CudaWeight(weight, "cpu", kernels=_simt, **options)
