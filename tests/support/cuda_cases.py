"""What the tests of the kernels for GPUs share, as loops or on a GPU: weights, inputs and the check.

Reference is float64 over the stored values. A product of two 16-bit floats, or of a code and one, is exact in float32;
what is rounded is sums. A GPU adds the products of one matrix instruction with at least 23 bits behind the leading
one, cut off rather than rounded, so each of d additions may lose eps = 2^-23 of the terms so far: d * eps *
sum(|w||x|), where d counts instructions, splits, scales and the bias. The output is rounded once, to half or bfloat.
"""

from __future__ import annotations

import numpy as np
import torch

import reference
from gossamer import _core
from gossamer.gpu.cuda import CudaWeight

TYPES = ("f16", "bf16", "int8", "int4")
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
OUTPUT_EPS = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TOKENS = (1, 2, 3, 4, 7, 8, 16, 33, 64)
SHAPES = [(1, 1), (17, 65), (64, 256), (33, 190), (130, 600)]
PATTERNS = [(2, 4), (1, 4), (2, 8), (4, 8), (16, 32), (16, 64)]
GROUPS = {"f16": (0,), "bf16": (0,), "int8": (0, 32, 64, 128), "int4": (0, 32, 64, 128)}


def dtypes_for(type: str) -> list[torch.dtype]:
    return [DTYPES[type]] if type in DTYPES else list(DTYPES.values())


def pack(
    type: str, group: int, shape: tuple[int, int], sparsity: float, pattern: tuple[int, int] | None, format: str = ""
) -> _core.Weight:
    values = reference.random_matrix(*shape, sparsity)
    if pattern is None:
        return _core.pack(values, format or "bitmap", type, group)
    return _core.pack(reference.prune_nm(values, *pattern), "nm", type, group, pattern)


def inputs(tokens: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    x = np.random.default_rng([tokens, cols]).standard_normal((tokens, cols)).astype(np.float32)
    if tokens > 2:
        x[1] = 0
    return torch.from_numpy(x).to(dtype)


def check(weight: _core.Weight, gpu: CudaWeight, x: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    y = gpu.linear(x, bias).cpu()
    assert y.dtype == x.dtype
    x, bias = x.cpu(), None if bias is None else bias.cpu()
    stored, given = weight.unpack().astype(np.float64), x.double().numpy()
    exact = given @ stored.T
    size = np.abs(given) @ np.abs(stored).T
    if bias is not None:
        exact += bias.double().numpy()
        size += np.abs(bias.double().numpy())
    eps = OUTPUT_EPS[x.dtype]
    depth = weight.cols / 16 + 3 * (weight.cols / 32) + 16 + 8  # instructions; groups of scales; splits; the rest
    bound = (1 + eps) * 1.01 * depth * 2.0**-23 * size + eps * np.abs(exact) + 2.0**-25  # the last: subnormal halves
    error = np.abs(y.double().numpy() - exact)
    assert (error <= bound).all(), f"off by {np.max(error / bound):.2f} bounds"


def codes_or_bits(weight: _core.Weight, gpu: CudaWeight) -> tuple[np.ndarray, np.ndarray]:
    """What is stored, on the host and on the GPU: codes of integer types, the bits of floats."""
    if weight.type in DTYPES:
        found = gpu.dense(DTYPES[weight.type]).cpu().view(torch.int16).numpy().view(np.uint16)
        return reference.raw_values(weight.unpack(), weight.type), found
    return weight.codes()[0].astype(np.float32), gpu.dense(torch.float16, scaled=False).cpu().float().numpy()
