"""The AMX kernels over emulated tiles: bit for bit the results of the VNNI kernels, which stand in for one token."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import reference
from gossamer import _core
from kernel_cases import packed, parse

EMULATED = _core.kernels("amx_emulated")
COUNTS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 80, 131)

if not EMULATED:
    pytest.skip("needs AVX-512 VBMI2 and a build with GOSSAMER_EMULATED_TILES", allow_module_level=True)


def inputs(tokens: int, cols: int) -> np.ndarray:
    x = np.random.default_rng([tokens, cols]).standard_normal((tokens, cols)).astype(np.float32)
    x[tokens // 2, : cols // 2] = 0  # units without a scale
    return x


def same(name: str, weight: _core.Weight, x: np.ndarray) -> None:
    """Checks that a kernel writes what the VNNI kernel writes, NaN behind the rows included."""
    vnni = _core.run_kernel(name.replace("amx_emulated", "avx512_vbmi2"), weight, x)
    np.testing.assert_array_equal(_core.run_kernel(name, weight, x).view(np.uint32), vnni.view(np.uint32))


def test_there_is_one_for_every_format_but_csr_and_integer_type() -> None:
    assert {parse(name)[:2] for name in EMULATED} == {
        (format, type) for format in reference.FORMATS if format != "csr" for type in reference.INTEGER
    }


@pytest.mark.parametrize("name", EMULATED)
@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_results_are_those_of_vnni(name: str, group: int) -> None:
    for shape, zeros in (((1, 1), 0.0), ((49, 200), 0.6), ((33, 65), 0.9), ((48, 128), 1.0), ((96, 192), 0.0)):
        weight = packed(*parse(name)[:2], group, shape, zeros)
        for tokens in COUNTS:
            same(name, weight, inputs(tokens, shape[1]))


@pytest.mark.parametrize("name", [name for name in EMULATED if name.startswith("nm_")])
@pytest.mark.parametrize("pattern", [(1, 4), (3, 4), (2, 8), (16, 32), (8, 8)])
def test_every_nm_pattern(name: str, pattern: tuple[int, int]) -> None:
    weight = packed(*parse(name)[:2], 64, (35, 150), 0.0, pattern)
    for tokens in (2, 7, 20):
        same(name, weight, inputs(tokens, 150))


@pytest.mark.parametrize("name", EMULATED)
def test_the_largest_codes_do_not_overflow(name: str) -> None:
    format, type, _ = parse(name)
    least = -128 if type == "int8" else -8
    codes = np.full((32, 128), least, np.int8)
    codes[::2] = -least - 1
    pattern = (4, 4) if format == "nm" else None
    weight = _core.pack_codes(codes, np.ones((32, 2), np.float16), format, type, 64, pattern)
    for tokens in (2, 12, 18):
        x = np.full((tokens, 128), 127.0, np.float32)
        x[1::2] = -127
        same(name, weight, x)
        y = _core.run_kernel(name, weight, x)[:, :32]
        np.testing.assert_array_equal(y, x @ codes.T.astype(np.float32))


@pytest.mark.parametrize("name", EMULATED)
@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38, 1e-44])
def test_inputs_out_of_the_ordinary_give_the_same_bits(name: str, poison: float) -> None:
    weight = packed(*parse(name)[:2], 64, (40, 256), 0.7)
    x = inputs(19, 256)
    x[3, 70] = x[17, 200] = poison
    x[5] = poison
    same(name, weight, x)


@pytest.mark.parametrize("name", EMULATED)
def test_threads_and_pieces_do_not_change_a_bit(name: str) -> None:
    weight = packed(*parse(name)[:2], 64, (1000, 320), 0.5)
    x = inputs(18, 320)
    whole = _core.run_kernel(name, weight, x)[:, :1000]
    for threads in (1, 3):
        np.testing.assert_array_equal(_core.time_linears([weight], x, threads=threads, kernel=name)[1], whole)


def test_the_tier_chooses_them_for_8_bit_activations_alone() -> None:
    code = """if True:
        import numpy as np
        from gossamer import _core
        values = np.random.default_rng(0).standard_normal((40, 128), np.float32)
        x = np.random.default_rng(1).standard_normal((6, 128), np.float32)
        for type, activations in (("int8", "a8"), ("int4", "a8"), ("int8", "f32"), ("bf16", "f32")):
            weight = _core.pack(values, "bitmap", type)
            print(_core.Linear(weight, activations).kernel, _core.linear(weight, x, activations).tobytes().hex())
        """
    runs = {}
    for isa in ("amx_emulated", "avx512_vbmi2"):
        environment = {**os.environ, "GOSSAMER_ISA": isa}
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
        runs[isa] = [line.split() for line in run.stdout.splitlines()]
    kernels = [kernel for kernel, _ in runs["amx_emulated"]]
    assert kernels == [
        "bitmap_linear_int8_a8__amx_emulated",
        "bitmap_linear_int4_a8__amx_emulated",
        "bitmap_linear_int8_f32__avx512",
        "bitmap_linear_bf16_f32__avx512",
    ]
    assert [bits for _, bits in runs["amx_emulated"]] == [bits for _, bits in runs["avx512_vbmi2"]]
