"""Every linear kernel that this machine can run, against float64 over the stored values.

Bounds are derived: with unit roundoff u = 2^-24 and at most d roundings between a product and the result, a sum of
terms t is off by at most d * u * sum(|t|) (to first order; the factor 1.01 covers the rest).
"""

from __future__ import annotations

import numpy as np
import pytest

import reference
from gossamer import _core
from kernel_cases import packed, parse

U = 2.0**-24
SHAPES = [(1, 1), (17, 65), (48, 64), (33, 190), (64, 576)]
SPARSITIES = [0.0, 0.5, 0.9, 1.0]
BATCHES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 64, 67]


def groups_of(type: str) -> tuple[int, ...]:
    return (0, 32, 64, 128) if type in reference.INTEGER else (0,)


def expected(weight: _core.Weight, x: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """The float64 result [batch, rows] and the bound on what a kernel may be off by."""
    stored = weight.unpack().astype(np.float64)
    cols = weight.cols
    if activation == "a8":
        unit = 32 if weight.group == 32 else 64
        codes, scales, _ = _core.quantize_activations(x, unit)
        weight_codes, weight_scales = weight.codes()
        group = weight.group or cols
        w_scale = np.repeat(weight_scales.astype(np.float64), group, axis=1)[:, :cols]
        y = np.zeros((len(x), weight.rows))
        size = np.zeros_like(y)
        for first in range(0, cols, unit):
            # Exact integers; only what follows them is rounded.
            here = slice(first, min(first + unit, cols))
            sums = codes[:, here].astype(np.int64) @ weight_codes[:, here].astype(np.int64).T
            term = sums * scales[:, first // unit, None].astype(np.float64) * w_scale[:, first]
            y += term
            size += np.abs(term)
        depth = -(-cols // unit) + 6
        return y, 1.01 * depth * U * size + 1e-30
    inputs = reference.from_bf16(reference.to_bf16(x)) if activation == "bf16" else x
    inputs = inputs.astype(np.float64)
    depth = cols / 2 + 80  # the longest chain: 2 additions a word of 4 inputs, 64 within a tile, scales and reductions
    return inputs @ stored.T, 1.01 * depth * U * (np.abs(inputs) @ np.abs(stored).T) + 1e-30


def inputs(batch: int, cols: int) -> np.ndarray:
    x = np.random.default_rng([batch, cols]).standard_normal((batch, cols)).astype(np.float32)
    if batch > 2:
        x[1] = 0
    return x


def check(name: str, weight: _core.Weight, batch: int) -> None:
    activation = parse(name)[2]
    x = inputs(batch, weight.cols)
    y = _core.run_kernel(name, weight, x)
    assert np.isnan(y[:, weight.rows :]).all(), "wrote beyond its rows"
    y = y[:, : weight.rows]
    exact, bound = expected(weight, x, activation)
    error = np.abs(y - exact)
    assert (error <= bound).all(), f"off by {np.max(error / bound):.2f} bounds"


ALL = _core.kernels()


def test_the_registry_is_complete_and_names_are_unique() -> None:
    assert len(set(ALL)) == len(ALL)
    pairs = set(map(parse, ALL))
    floats = {(f, t, "f32") for f in reference.FORMATS for t in reference.TYPES}
    a8 = {(f, t, "a8") for f in reference.FORMATS for t in reference.INTEGER}
    bf16 = {(f, t, "bf16") for f in reference.FORMATS for t in ("bf16", "f16")}
    assert pairs == floats | a8 | bf16
    assert {name.partition("__")[2] for name in ALL} <= set(_core.isas())


@pytest.mark.parametrize("name", ALL)
def test_kernel_matches_float64(name: str) -> None:
    format, type, _ = parse(name)
    for shape in SHAPES:
        for sparsity in SPARSITIES:
            for group in groups_of(type):
                weight = packed(format, type, group, shape, sparsity)
                for batch in (1, 5):
                    check(name, weight, batch)


@pytest.mark.parametrize("name", ALL)
def test_a_token_is_the_same_in_any_company(name: str) -> None:
    format, type, _ = parse(name)
    for group in groups_of(type)[:2]:
        weight = packed(format, type, group, (49, 200), 0.6)
        x = inputs(max(BATCHES), 200)
        alone = np.concatenate([_core.run_kernel(name, weight, row[None]) for row in x])
        for batch in BATCHES:
            together = _core.run_kernel(name, weight, x[:batch])
            np.testing.assert_array_equal(together[:, :49], alone[:batch, :49])


@pytest.mark.parametrize("name", [name for name in ALL if parse(name)[0] == "nm"])
def test_every_nm_pattern(name: str) -> None:
    _, type, _ = parse(name)
    for pattern in [(1, 4), (2, 8), (4, 8), (16, 32), (5, 16), (16, 64), (8, 8)]:
        for batch in (1, 3):
            check(name, packed("nm", type, groups_of(type)[-1], (35, 150), 0.0, pattern), batch)


@pytest.mark.parametrize("name", ALL)
def test_unaligned_weights(name: str) -> None:
    format, type, _ = parse(name)
    weight = packed(format, type, 0, (33, 130), 0.5)
    streams = {}
    for key, stream in weight.streams().items():
        raw = np.zeros(stream.nbytes + 8, np.uint8)
        raw[8:] = stream.view(np.uint8)  # aligned to an element, to nothing more
        streams[key] = raw[8:].view(stream.dtype)
    moved = _core.weight_from_streams(format, type, 33, 130, 0, weight.pattern, streams)
    x = inputs(1, 130)
    np.testing.assert_array_equal(_core.run_kernel(name, moved, x), _core.run_kernel(name, weight, x))


@pytest.mark.parametrize("format", reference.FORMATS)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_change_a_bit(format: str, threads: int) -> None:
    weight = packed(format, "int4", 64, (1030, 300), 0.5)
    x = inputs(3, 300)
    one = _core.linear(weight, x, "a8", 1)
    np.testing.assert_array_equal(_core.linear(weight, x, "a8", threads), one)
    exact, bound = expected(weight, x, "a8")
    assert (np.abs(one - exact) <= bound).all()


@pytest.mark.parametrize("unit", [32, 64])
def test_activation_codes_are_the_nearest(unit: int) -> None:
    x = inputs(4, 150) * np.float32(3.7)
    x[2, :64] = 0
    codes, scales, surplus = _core.quantize_activations(x, unit)
    padded = np.pad(x, ((0, 0), (0, 42))).astype(np.float64)
    units = padded.reshape(4, -1, unit)
    np.testing.assert_array_equal(scales, np.abs(units).max(axis=2).astype(np.float32) / np.float32(127))
    error = np.abs(codes.reshape(units.shape) * scales[:, :, None].astype(np.float64) - units)
    assert (error <= scales[:, :, None] * (0.5 + 1e-4)).all()
    assert np.abs(codes.astype(int)).max() == 127
    np.testing.assert_array_equal(surplus, -128 * codes.reshape(units.shape).sum(axis=2, dtype=np.int32))


def test_nan_and_infinity_in_the_inputs_reach_the_outputs() -> None:
    weight = packed("bitmap", "int8", 64, (20, 130), 0.5)
    for poison in (np.nan, np.inf):
        for activation in ("f32", "a8"):
            x = inputs(1, 130)
            x[0, 70] = poison
            touched = weight.unpack()[:, 70] != 0
            assert not np.isfinite(_core.linear(weight, x, activation)[0, touched]).any()


def test_no_tokens_give_no_rows() -> None:
    weight = packed("bitmap", "int8", 64, (20, 130), 0.5)
    assert _core.linear(weight, np.zeros((0, 130), np.float32)).shape == (0, 20)


@pytest.mark.parametrize("tokens", [159, 160, 300])
@pytest.mark.parametrize(("type", "activation"), [("f32", "f32"), ("bf16", "bf16"), ("int8", "a8"), ("int4", "a8")])
def test_many_tokens_are_taken_in_turns_that_change_no_bit(type: str, activation: str, tokens: int) -> None:
    weight = packed("dense", type, 64 if type in reference.INTEGER else 0, (70, 2100), 0.0)
    x = inputs(tokens, 2100)
    together = _core.linear(weight, x, activation, 2)
    alone = np.concatenate([_core.linear(weight, x[t : t + 1], activation) for t in range(tokens)])
    np.testing.assert_array_equal(together, alone)


def test_wrong_requests_are_told() -> None:
    weight = packed("bitmap", "int8", 64, (20, 130), 0.5)
    with pytest.raises(ValueError, match="x must have 130 columns, got 131"):
        _core.linear(weight, np.zeros((1, 131), np.float32))
    with pytest.raises(ValueError, match="x must be a matrix"):
        _core.linear(weight, np.zeros(130, np.float32))
    with pytest.raises(ValueError, match="activations must be f32, bf16 or a8, got 'a16'"):
        _core.linear(weight, np.zeros((1, 130), np.float32), "a16")
    with pytest.raises(ValueError, match="threads must be between 0 and 1024, got -1"):
        _core.linear(weight, np.zeros((1, 130), np.float32), "f32", -1)
    with pytest.raises(ValueError, match="does not take bitmap weights of type int8"):
        _core.run_kernel("dense_linear_f32_f32__scalar", weight, np.zeros((1, 130), np.float32))
