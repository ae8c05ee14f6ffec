"""Native formats against the numpy writer, and against broken streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from gossamer import _core

SHAPES = [(1, 1), (15, 63), (16, 64), (17, 65), (33, 130), (48, 200)]
SPARSITIES = [0.0, 0.5, 0.9, 1.0]
PATTERNS = [(2, 4), (1, 4), (4, 8), (2, 8), (5, 16), (16, 32), (16, 64), (3, 64), (4, 4)]


def pattern_of(format: str) -> tuple[int, int] | None:
    return (2, 4) if format == "nm" else None


def groups_of(type: str) -> tuple[int, ...]:
    return (0, 32, 64, 128) if type in reference.INTEGER else (0,)


def raw_of(weight: _core.Weight, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Raw elements and scales that the weight should have stored."""
    if weight.type in reference.INTEGER:
        codes, scales = weight.codes()
        return reference.raw_codes(codes, weight.type), scales
    return reference.raw_values(values, weight.type), None


def check(values: np.ndarray, format: str, type: str, group: int, pattern: tuple[int, int] | None) -> None:
    weight = _core.pack(values, format, type, group, pattern)
    raw, scales = raw_of(weight, values)
    expected = reference.pack(raw, scales, format, type, group, pattern)
    streams = weight.streams()
    assert set(streams) == set(expected)
    for name, stream in streams.items():
        assert stream.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(stream.view(np.uint8), expected[name].view(np.uint8), err_msg=name)
        with pytest.raises(ValueError, match="read-only"):
            stream[:] = 0
    assert weight.nnz == np.count_nonzero(raw)
    assert weight.nbytes == sum(stream.nbytes for stream in streams.values())

    again = _core.weight_from_streams(format, type, *values.shape, group, pattern, streams)
    np.testing.assert_array_equal(again.unpack().view(np.uint32), weight.unpack().view(np.uint32))
    repacked = _core.pack_codes(*weight.codes(), format, type, group, pattern) if scales is not None else None
    if repacked is not None:
        for name, stream in repacked.streams().items():
            np.testing.assert_array_equal(stream, streams[name], err_msg=name)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("type", reference.TYPES)
@pytest.mark.parametrize("format", reference.FORMATS)
def test_streams_are_those_of_the_reference_writer(
    format: str, type: str, shape: tuple[int, int], sparsity: float
) -> None:
    values = reference.random_matrix(*shape, sparsity)
    if format == "nm":
        values = reference.prune_nm(values, 2, 4)
    for group in groups_of(type):
        check(values, format, type, group, pattern_of(format))


@pytest.mark.parametrize("type", reference.TYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_nm_pattern(pattern: tuple[int, int], type: str) -> None:
    check(reference.prune_nm(reference.random_matrix(35, 150, 0.0), *pattern), "nm", type, groups_of(type)[-1], pattern)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 200),
    sparsity=st.floats(0, 1),
    format=st.sampled_from(("dense", "bitmap", "csr")),
    type=st.sampled_from(reference.TYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape(rows: int, cols: int, sparsity: float, format: str, type: str, seed: int) -> None:
    check(
        reference.random_matrix(rows, cols, sparsity, seed),
        format,
        type,
        groups_of(type)[seed % len(groups_of(type))],
        None,
    )


@pytest.mark.parametrize("format", reference.FORMATS)
@pytest.mark.parametrize("type", ["f32", "bf16", "f16"])
def test_float_values_come_back_exactly(type: str, format: str) -> None:
    values = reference.random_matrix(20, 70, 0.5)
    rounded = {
        "f32": values,
        "bf16": reference.from_bf16(reference.to_bf16(values)),
        "f16": values.astype(np.float16).astype(np.float32),
    }[type]
    unpacked = _core.pack(values, format, type, 0, (4, 4) if format == "nm" else None).unpack()
    np.testing.assert_array_equal(unpacked, rounded)


@pytest.mark.parametrize("format", ["bitmap", "csr", "nm"])
@pytest.mark.parametrize("type", reference.TYPES)
def test_minus_zero_is_zero(type: str, format: str) -> None:
    values = np.full((3, 8), -0.0, np.float32)
    values[1, 2] = 1.5
    weight = _core.pack(values, format, type, 0, (1, 8) if format == "nm" else None)
    assert weight.nnz == 1
    assert not np.signbit(weight.unpack()).any()


@pytest.mark.parametrize("format", reference.FORMATS)
@pytest.mark.parametrize("type", ["f32", "bf16", "f16"])
def test_nan_and_infinity_are_kept(type: str, format: str) -> None:
    values = np.zeros((2, 16), np.float32)
    values[0, 1], values[0, 9], values[1, 3] = np.nan, np.inf, -np.inf
    unpacked = _core.pack(values, format, type, 0, (1, 8) if format == "nm" else None).unpack()
    np.testing.assert_array_equal(unpacked, values)


@pytest.mark.parametrize("type", reference.INTEGER)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_integers_refuse_values_that_are_not_finite(type: str, value: float) -> None:
    values = np.zeros((2, 5), np.float32)
    values[1, 3] = value
    with pytest.raises(ValueError, match=r"row 1, column 3 cannot be stored as int"):
        _core.pack(values, "dense", type)


def test_f16_refuses_values_beyond_its_range() -> None:
    with pytest.raises(ValueError, match=r"value 70000 at row 0, column 0 does not fit f16"):
        _core.pack(np.array([[70000.0]], np.float32), "dense", "f16")


@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_int8_rounds_to_the_nearest_of_its_codes(group: int) -> None:
    values = reference.random_matrix(19, 150, 0.4)
    codes, scales = _core.pack(values, "dense", "int8", group).codes()
    wide = np.repeat(scales.astype(np.float64), group or 150, axis=1)[:, :150]
    assert codes.min() >= -127
    # Half a step, and what rounding the scale to f16 can cut off at the largest value.
    assert (np.abs(codes * wide - values) <= wide * (0.5 + 127 * 2.0**-11)).all()
    assert (codes[values == 0] == 0).all()


@pytest.mark.parametrize("group", [32, 64])
def test_int4_loses_less_than_the_plain_scale(group: int) -> None:
    values = reference.random_matrix(32, 256, 0.5)
    stored = _core.pack(values, "dense", "int4", group).unpack()
    blocks = values.reshape(32, -1, group)
    plain = np.abs(blocks).max(axis=2, keepdims=True) / 7
    rounded = np.round(blocks / np.where(plain == 0, 1, plain)) * plain
    assert np.square(stored - values).sum() < 0.97 * np.square(rounded - blocks).sum()
    assert (stored[values == 0] == 0).all()


@pytest.mark.parametrize("type", ["int8", "int4"])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_scales_are_those_that_values_are_packed_with(type: str, group: int) -> None:
    values = np.random.default_rng(4).standard_normal((37, 150)).astype(np.float32)
    values *= 10.0 ** np.arange(-9, 28)[:, None] / 1e23  # down to f16's subnormal scales and below
    values[5] = 0
    values[6, 32:] = 0
    scales = _core.choose_scales(values, type, group)
    assert scales.dtype == np.float16
    np.testing.assert_array_equal(scales, _core.pack(values, "dense", type, group).codes()[1])
    np.testing.assert_array_equal(_core.choose_scales(np.asfortranarray(values), type, group), scales)


@pytest.mark.parametrize(
    ("values", "type", "group", "message"),
    [
        ([[1.0, np.nan]], "int4", 0, "value nan at row 0, column 1 cannot be stored as int4"),
        ([[0.0], [1e9]], "int8", 32, "row 1, columns from 0 are too large for an f16 scale"),
        ([[1.0]], "f16", 0, "scales are for int8 and int4, got type f16"),
        ([[1.0]], "int4", 33, "group must be 32, 64, 128 or 0"),
        ([1.0], "int4", 0, "must be a matrix"),
        (np.zeros((0, 3)), "int4", 0, "at least one row"),
    ],
)
def test_scales_that_cannot_be_had_are_named(values: Any, type: str, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.choose_scales(values, type, group)


def test_scale_of_tiny_values_does_not_vanish() -> None:
    values = np.full((1, 64), 1e-7, np.float32)
    assert np.count_nonzero(_core.pack(values, "dense", "int8").unpack()) == 64


# --- broken streams --------------------------------------------------------------------------------------------------


def streams_of(
    format: str, type: str = "int8", rows: int = 40, cols: int = 150
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    values = reference.prune_nm(reference.random_matrix(rows, cols, 0.3), 2, 4)
    weight = _core.pack(values, format, type, 64, pattern_of(format))
    return {k: v.copy() for k, v in weight.streams().items()}, (format, type, rows, cols, 64, pattern_of(format))


@pytest.mark.parametrize("format", reference.FORMATS)
def test_missing_short_long_and_wrongly_typed_streams_are_refused(format: str) -> None:
    streams, key = streams_of(format)
    for name, stream in streams.items():
        for broken in (None, stream[:-64], np.concatenate([stream, stream[:64]]), stream.astype(np.float32)):
            bad = {k: v for k, v in streams.items() if k != name}
            if broken is not None:
                bad[name] = broken
            with pytest.raises(ValueError, match=f"stream '{name}'|disagrees"):
                _core.weight_from_streams(*key, bad)


def set_to(index: int, value: int) -> Any:
    def change(stream: np.ndarray) -> None:
        stream[index] = value

    return change


@pytest.mark.parametrize(
    ("format", "name", "change"),
    [
        ("bitmap", "offsets", set_to(0, 8)),
        ("bitmap", "offsets", set_to(1, 1 << 60)),
        ("bitmap", "offsets", set_to(3, 0)),
        ("bitmap", "masks", set_to(5, 2**64 - 1)),
        ("bitmap", "masks", set_to(-1, 1)),
        ("nm", "masks", set_to(5, 2**64 - 1)),
        ("nm", "masks", set_to(0, 0)),
        ("csr", "columns", set_to(0, 64)),
        ("csr", "columns", set_to(9, 255)),
        ("csr", "counts", set_to(0, 255)),
        ("csr", "lanes", set_to(1, 0xFFFF)),
        ("csr", "lanes", set_to(0, 0)),
        ("csr", "slots", set_to(1, 1)),
        ("csr", "steps", set_to(2, 1 << 50)),
        ("csr", "offsets", set_to(2, 3)),
        ("dense", "scales", set_to(3, np.inf)),
        ("bitmap", "scales", set_to(3, np.nan)),
    ],
)
def test_indices_that_point_astray_are_refused(format: str, name: str, change: Any) -> None:
    streams, key = streams_of(format)
    change(streams[name])
    with pytest.raises(ValueError, match="stream"):
        _core.weight_from_streams(*key, streams)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), format=st.sampled_from(("bitmap", "csr", "nm")))
def test_a_flipped_bit_is_refused_or_harmless(data: Any, format: str) -> None:
    streams, key = streams_of(format, rows=20, cols=70)
    name = data.draw(st.sampled_from(sorted(streams)))
    view = streams[name].view(np.uint8)
    view[data.draw(st.integers(0, len(view) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        weight = _core.weight_from_streams(*key, streams)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert np.isfinite(_core.linear(weight, np.ones((1, 70), np.float32), "f32")).all()
    assert not message or "stream" in message


def test_unaligned_streams_are_refused_where_kernels_need_alignment() -> None:
    streams, key = streams_of("bitmap")
    raw = np.zeros(streams["masks"].nbytes + 1, np.uint8)
    raw[1:] = streams["masks"].view(np.uint8)
    streams["masks"] = np.frombuffer(raw.data, np.uint64, offset=1)
    with pytest.raises(ValueError, match="stream 'masks' is not aligned to 8 bytes"):
        _core.weight_from_streams(*key, streams)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sparse", "f32"), "format must be one of dense, bitmap, csr, nm, got 'sparse'"),
        (("dense", "fp32"), "value type must be one of f32, bf16, f16, int8, int4, got 'fp32'"),
        (("dense", "int8", 48), "group must be 32, 64, 128 or 0"),
        (("nm", "f32"), "format nm needs a pattern"),
        (("dense", "f32", 0, (2, 4)), "only format nm takes a pattern"),
        (("nm", "f32", 0, (2, 5)), "M of an N:M pattern must be 4, 8, 16, 32 or 64, got 5"),
        (("nm", "f32", 0, (5, 4)), "N of an N:M pattern must be between 1 and M = 4, got 5"),
        (("nm", "f32", 0, (1, 4)), "more than the pattern 1:4 allows"),
    ],
)
def test_bad_requests_are_told_in_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.pack(np.ones((4, 8), np.float32), *arguments)


def test_empty_matrices_and_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        _core.pack(np.zeros((0, 5), np.float32), "dense", "f32")
    with pytest.raises(ValueError, match="must be a matrix"):
        _core.pack(np.zeros(5, np.float32), "dense", "f32")


def test_packed_arrays_outlive_their_weight() -> None:
    values = reference.random_matrix(32, 64, 0.5)
    streams = _core.pack(values, "bitmap", "f32").streams()
    weight = _core.weight_from_streams("bitmap", "f32", 32, 64, 0, None, dict(streams))
    del streams
    np.testing.assert_array_equal(weight.unpack(), values)


def test_unknown_streams_and_foreign_byte_orders_are_refused() -> None:
    streams, key = streams_of("bitmap")
    with pytest.raises(ValueError, match="stream 'columns' is unknown to format bitmap"):
        _core.weight_from_streams(*key, {**streams, "columns": np.zeros(64, np.uint8)})
    with pytest.raises(ValueError, match="stream 'masks' must have elements of type uint64, got >u8"):
        _core.weight_from_streams(*key, {**streams, "masks": streams["masks"].astype(">u8")})


@pytest.mark.parametrize("format", ["dense", "nm"])
def test_padding_that_would_reach_an_output_is_refused(format: str) -> None:
    weight = _core.pack(np.zeros((16, 60), np.float32), format, "f32", 0, (4, 4) if format == "nm" else None)
    streams = {name: stream.copy() for name, stream in weight.streams().items()}
    streams["values"].view(np.float32)[15 * 64] = np.nan  # row 0, column 60
    with pytest.raises(ValueError, match="stream 'values' is not zero in the padding of panel 0"):
        _core.weight_from_streams(format, "f32", 16, 60, 0, weight.pattern, streams)


def test_codes_and_values_of_other_types_are_refused() -> None:
    scales = np.ones((1, 1), np.float16)
    with pytest.raises(ValueError, match="codes must be int8"):
        _core.pack_codes(np.array([[300]], np.int16), scales, "dense", "int8", 0)
    with pytest.raises(ValueError, match="code 9 does not fit int4"):
        _core.pack_codes(np.array([[9]], np.int8), scales, "dense", "int4", 0)
    with pytest.raises(ValueError, match="values must hold real numbers, got dtype complex64"):
        _core.pack(np.ones((2, 2), np.complex64), "dense", "f32")
