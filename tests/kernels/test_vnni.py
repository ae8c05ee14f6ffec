"""The AVX-VNNI kernels, with the twin of their dot product where need be: bit for bit the results of AVX2."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from gossamer import _core
from kernel_cases import packed, parse

KERNELS = [*_core.kernels("avx_vnni"), *_core.kernels("avx_vnni_evex")]
COUNTS = (1, 2, 3, 4, 7, 8, 9, 16, 33)
SHAPES = (((1, 1), 0.0), ((49, 200), 0.6), ((33, 65), 0.9), ((48, 128), 1.0), ((96, 192), 0.0))

if not KERNELS:
    pytest.skip("needs AVX-VNNI, or AVX-512 VNNI and a build with GOSSAMER_EVEX_VNNI", allow_module_level=True)


def same(name: str, weight: _core.Weight, x: np.ndarray) -> None:
    avx2 = _core.run_kernel(f"{name.partition('__')[0]}__avx2", weight, x)
    np.testing.assert_array_equal(_core.run_kernel(name, weight, x).view(np.uint32), avx2.view(np.uint32))


def inputs(tokens: int, cols: int) -> np.ndarray:
    x = np.random.default_rng([tokens, cols]).standard_normal((tokens, cols)).astype(np.float32)
    x[tokens // 2, : cols // 2] = 0  # units without a scale
    return x


def test_there_is_one_for_every_format_and_integer_type() -> None:
    assert {parse(name)[:2] for name in KERNELS} == {
        (format, type) for format in reference.FORMATS for type in reference.INTEGER
    }


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_results_are_those_of_avx2(name: str, group: int) -> None:
    for shape, zeros in SHAPES:
        weight = packed(*parse(name)[:2], group, shape, zeros)
        for tokens in COUNTS:
            same(name, weight, inputs(tokens, shape[1]))


@pytest.mark.parametrize("name", [name for name in KERNELS if parse(name)[0] == "nm"])
@pytest.mark.parametrize("pattern", [(1, 4), (3, 4), (4, 4), (4, 8), (2, 16)])
def test_every_pattern_gives_the_results_of_avx2(name: str, pattern: tuple[int, int]) -> None:
    weight = packed(*parse(name)[:2], 64, (49, 200), 0.0, pattern)
    for tokens in COUNTS:
        same(name, weight, inputs(tokens, 200))


@pytest.mark.parametrize("name", KERNELS)
def test_the_largest_sums_are_exact(name: str) -> None:
    values = np.where(np.arange(16)[:, None] % 2 == 0, -1.0, 1.0) * np.ones((16, 256))
    format, type, _ = parse(name)
    if format == "nm":
        values = reference.prune_nm(values, 2, 4)
    weight = _core.pack(values.astype(np.float32), format, type, 64, (2, 4) if format == "nm" else None)
    for sign in (-1.0, 1.0):
        same(name, weight, np.full((3, 256), sign, np.float32))
