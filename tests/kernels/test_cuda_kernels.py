"""The kernels for GPUs, run as loops on the processor by the module `_simt`: what they compute, never how fast."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from gossamer import _core

torch = pytest.importorskip("torch")
_simt = pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the kernels as loops")

from cuda_cases import (  # noqa: E402
    DTYPES,
    GROUPS,
    PATTERNS,
    SHAPES,
    TOKENS,
    TYPES,
    check,
    codes_or_bits,
    dtypes_for,
    inputs,
    pack,
)
from cuda_loops import on_loops  # noqa: E402
from cuda_steps import check_attention, check_steps  # noqa: E402
from gossamer.gpu.cuda import CudaWeight  # noqa: E402


def test_every_format_and_type_has_its_kernels() -> None:
    pairs = [(t, a) for t in TYPES for a in (DTYPES if t not in DTYPES else (t,))]
    names = {f"{format}_linear_{t}_{a}__cuda" for format in ("bitmap", "nm", "csr") for t, a in pairs}
    assert set(_simt.kernels()) == names
    assert _simt.__source_hash__ == _core.__source_hash__


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, *PATTERNS], ids=str)
def test_records_hold_the_stored_values(type: str, pattern: tuple[int, int] | None, order: str) -> None:
    del order
    for shape in SHAPES:
        for sparsity in (0.0, 0.5, 0.9, 1.0) if pattern is None else (0.0, 0.7):
            weight = pack(type, GROUPS[type][-1], shape, sparsity, pattern)
            gpu = on_loops(weight)
            assert gpu.layout == ("nm24" if pattern in {(2, 4), (1, 4), (2, 8)} else "bitmap")
            stored, found = codes_or_bits(weight, gpu)
            np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("format", ["dense", "csr"])
def test_other_formats_become_bitmaps(type: str, format: str) -> None:
    weight = pack(type, GROUPS[type][-1], (35, 150), 0.8, None, format)
    stored, found = codes_or_bits(weight, on_loops(weight))
    np.testing.assert_array_equal(found, stored)


def test_nan_and_infinity_are_kept() -> None:
    values = reference.random_matrix(20, 70, 0.5)
    values[3, 5], values[4, 6], values[5, 7] = np.nan, np.inf, -np.inf
    dense = on_loops(_core.pack(values, "bitmap", "bf16")).dense(torch.bfloat16).float().numpy()
    assert np.isnan(dense[3, 5])
    assert dense[4, 6] == np.inf == -dense[5, 7]
    assert np.isfinite(dense).sum() == dense.size - 3


@pytest.mark.parametrize("type", ["int8", "int4"])
@pytest.mark.parametrize("pattern", [None, (2, 4)], ids=str)
def test_dense_has_the_scaled_values_rounded_once(type: str, pattern: tuple[int, int] | None) -> None:
    for group in GROUPS[type]:
        weight = pack(type, group, (33, 190), 0.5, pattern)
        expected = torch.from_numpy(weight.unpack())
        for dtype in DTYPES.values():
            assert torch.equal(on_loops(weight).dense(dtype), expected.to(dtype))


@pytest.mark.parametrize("type", TYPES)
def test_a_record_is_as_long_as_the_layout_says(type: str) -> None:
    bits = {"int8": 8, "int4": 4}.get(type, 16)
    values = reference.random_matrix(48, 192, 0.6)
    weight = _core.pack(values, "bitmap", type)
    stored = weight.unpack() if type in DTYPES else weight.codes()[0]
    counts = (stored != 0).reshape(3, 16, 3, 64).sum((1, 3)).reshape(-1)
    words = 32 + -(-counts * bits // 32)
    gpu = on_loops(weight)
    np.testing.assert_array_equal(gpu._offsets.numpy(), np.cumsum([0, *words]))
    assert gpu.nbytes == 4 * words.sum() + 4 * 10 + len(weight.streams().get("scales", np.zeros(0, np.uint8))) * 2


def test_sparser_weights_are_copied_in_longer_stages() -> None:
    stages = [on_loops(pack("f16", 0, (64, 512), s, None))._weight.stage for s in (0.0, 0.5, 0.9)]
    assert stages == [1, 2, 4]
    assert [on_loops(pack(t, 0, (64, 512), 0.0, (2, 4)))._weight.stage for t in TYPES] == [2, 2, 2, 4]


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, *PATTERNS], ids=str)
def test_linear_matches_float64(type: str, pattern: tuple[int, int] | None) -> None:
    for group in GROUPS[type]:
        for shape in SHAPES:
            for sparsity in (0.0, 0.5, 1.0) if pattern is None and group in (0, 64) else (0.5,):
                weight = pack(type, group, shape, sparsity, pattern)
                gpu = on_loops(weight)
                for dtype in dtypes_for(type):
                    check(weight, gpu, inputs(3, weight.cols, dtype))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, (2, 4), (16, 32)], ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_number_of_tokens(type: str, pattern: tuple[int, int] | None, tokens: int) -> None:
    weight = pack(type, GROUPS[type][-2 if len(GROUPS[type]) > 1 else 0], (70, 650), 0.6, pattern)
    for splits in (1, 3):
        gpu = on_loops(weight, splits=splits)
        for dtype in dtypes_for(type):
            bias = torch.linspace(-2, 2, 70).to(dtype) if splits == 3 else None
            check(weight, gpu, inputs(tokens, 650, dtype), bias)


@pytest.mark.parametrize("type", ["f16", "int4"])
@pytest.mark.parametrize("pattern", [None, (2, 4)], ids=str)
def test_results_do_not_depend_on_the_order_of_anything(type: str, pattern: tuple[int, int] | None, order: str) -> None:
    for sparsity in (0.2, 0.9):
        weight = pack(type, GROUPS[type][-1], (130, 900), sparsity, pattern)
        x = inputs(19, 900, torch.float16)
        for splits in (1, 4):
            y = on_loops(weight, splits=splits).linear(x)
            _simt.schedule(backwards=False, late_copies=False)
            expected = on_loops(weight, splits=splits).linear(x)
            _simt.schedule(backwards=order == "backward", late_copies=order == "late")
            assert torch.equal(y, expected)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, (2, 4)], ids=str)
def test_a_token_is_the_same_in_any_company(type: str, pattern: tuple[int, int] | None) -> None:
    gpu = on_loops(pack(type, GROUPS[type][-1], (70, 700), 0.6, pattern), splits=2)
    x = inputs(64, 700, dtypes_for(type)[0])
    alone = torch.cat([gpu.linear(row[None]) for row in x[:34]])
    for tokens in (2, 7, 8, 9, 16, 33, 64):
        assert torch.equal(gpu.linear(x[:tokens])[:34], alone[:tokens])


def test_counters_are_ready_for_the_next_call() -> None:
    weight = pack("f16", 0, (200, 1024), 0.5, None)
    gpu = on_loops(weight, splits=4)
    x = inputs(5, 1024, torch.float16)
    first = gpu.linear(x)
    for _ in range(3):
        assert torch.equal(gpu.linear(x), first)


def test_the_default_type_of_torch_means_nothing() -> None:
    weight = pack("bf16", 0, (70, 650), 0.5, None)
    gpu, x = on_loops(weight, splits=3), inputs(5, 650, torch.bfloat16)
    expected = gpu.linear(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(
            on_loops(weight, splits=3).linear(x), expected
        )  # sanitizers see partial sums that do not fit
    finally:
        torch.set_default_dtype(torch.float32)


def test_rows_and_strides_that_nothing_is_aligned_to() -> None:
    weight = pack("bf16", 0, (33, 190), 0.5, None)
    gpu = on_loops(weight)
    wide = inputs(6, 401, torch.bfloat16)
    check(weight, gpu, wide[:, 1:191])
    check(weight, gpu, wide[::2, 3:193])
    check(weight, gpu, wide.T[:190, :4].T)
    check(weight, gpu, wide[:1, 1:191].expand(4, -1))


def test_many_tokens_go_through_the_dense_matrix() -> None:
    weight = pack("int8", 64, (40, 130), 0.5, None)
    gpu = on_loops(weight)
    x = inputs(65, 130, torch.bfloat16)
    assert torch.equal(gpu.linear(x), torch.nn.functional.linear(x, gpu.dense(torch.bfloat16)))


def test_leading_dimensions_and_no_tokens() -> None:
    gpu = on_loops(pack("f16", 0, (17, 65), 0.5, None))
    x = inputs(6, 65, torch.float16)
    assert torch.equal(gpu.linear(x.view(2, 3, 65)).view(6, 17), gpu.linear(x))
    assert torch.equal(gpu.linear(x[0]), gpu.linear(x)[0])
    assert gpu.linear(x[:0]).shape == (0, 17)


def test_a_clone_stands_alone() -> None:
    gpu = on_loops(pack("int8", 64, (70, 700), 0.6, None), splits=2)
    twin, x = gpu.clone(), inputs(4, 700, torch.float16)
    expected = gpu.linear(x)
    for memory in (gpu._records, gpu._offsets, gpu._scales):
        memory.zero_()
    assert torch.equal(twin.linear(x), expected)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("pattern", [None, (2, 4)], ids=str)
def test_stacked_weights_give_what_each_gives(type: str, pattern: tuple[int, int] | None) -> None:
    group = GROUPS[type][-2 if len(GROUPS[type]) > 1 else 0]
    weights = [pack(type, group, (rows, 650), zeros, pattern) for rows, zeros in [(64, 0.5), (16, 0.9), (33, 0.2)]]
    parts = [on_loops(weight, splits=2) for weight in weights]
    whole = CudaWeight.stack(parts)
    assert whole is not None
    assert (whole.rows, whole.cols) == (113, 650)
    dtype = dtypes_for(type)[0]
    assert torch.equal(whole.dense(dtype), torch.cat([part.dense(dtype) for part in parts]))
    whole._splits = 2  # the order of sums
    x = inputs(5, 650, dtype)
    for part in parts:
        part._records.fill_(-1)  # the stack stands alone
    fresh = [on_loops(weight, splits=2) for weight in weights]
    assert torch.equal(whole.linear(x), torch.cat([part.linear(x) for part in fresh], dim=-1))


def test_what_cannot_be_stacked() -> None:
    a, b = on_loops(pack("f16", 0, (17, 130), 0.5, None)), on_loops(pack("f16", 0, (16, 130), 0.5, None))
    assert CudaWeight.stack([a, b]) is None
    assert CudaWeight.stack([b, a]) is not None
    others = [pack("f16", 0, (16, 66), 0.5, None), pack("bf16", 0, (16, 130), 0.5, None)]
    others += [pack("f16", 0, (16, 130), 0.5, (2, 4)), pack("int8", 32, (16, 130), 0.5, None)]
    assert all(CudaWeight.stack([b, on_loops(other)]) is None for other in others)


# --- a decoder's steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_what_a_decoder_does_between_linears(dtype: torch.dtype, order: str) -> None:
    del order
    check_steps(_simt, "cpu", dtype)
    check_attention(_simt, "cpu", dtype)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    gpu = on_loops(pack("f16", 0, (17, 65), 0.5, None))
    x = inputs(2, 65, torch.float16)
    for bad, word in [
        (x[:, :64], r"x must have 65 elements in its last dimension, got shape \(2, 64\)"),
        (x.bfloat16(), "x must be f16 as the weight is, got torch.bfloat16"),
        (x.float(), "got torch.float32"),
        (x.to("meta"), "x is on meta, the weight on cpu"),
    ]:
        with pytest.raises(ValueError, match=word):
            gpu.linear(bad)
    with pytest.raises(ValueError, match="bias must have 17 elements"):
        gpu.linear(x, x[0])
    with pytest.raises(ValueError, match="must be f16, bf16, int8 or int4 on a GPU, got f32"):
        on_loops(pack("f32", 0, (17, 65), 0.5, None))
    with pytest.raises(ValueError, match="nm24 needs a pattern that keeps at most 2 of 4"):
        on_loops(pack("f16", 0, (17, 65), 0.5, (4, 8)), layout="nm24")
    with pytest.raises(ValueError, match="layout must be bitmap or nm24, got 'rows'"):
        on_loops(pack("f16", 0, (17, 65), 0.5, None), layout="rows")
    with pytest.raises(ValueError, match="splits must be 1 to 1, got 2"):
        on_loops(pack("f16", 0, (17, 65), 0.5, None), splits=2).linear(x)
    with pytest.raises(ValueError, match="device must be a processor, got cuda"):
        CudaWeight(pack("f16", 0, (17, 65), 0.5, None), "cuda", kernels=_simt)


def test_native_steps_check_their_sizes() -> None:
    x = torch.zeros(64, dtype=torch.float16).data_ptr()
    for call, word in [
        (lambda: _simt.gate(x, x, 0, 4, "f16", -1, 0), "tokens must be 1 to 65535, got 0"),
        (lambda: _simt.gate(x, x, 1, 0, "f16", -1, 0), "width must be positive, got 0"),
        (lambda: _simt.add_norm(x, 0, 0, x, 1, 4, 1e-5, "f16", -1, 0), "weight must not be null"),
        (lambda: _simt.rotate(x, 0, 0, x, x, x, x, 1, 1, 1, 4, 3, 1, "f16", -1, 0), "half must be 0 to 2, got 3"),
        (lambda: _simt.rotate(x, 0, 0, x, x, x, x, 1, 0, 1, 4, 2, 1, "f16", -1, 0), "heads must be positive"),
        (lambda: _simt.attend(x, x, x, x, x, 3, 2, 4, 1, 1.0, 1, x, x, "f16", -1, 0), "heads must be a multiple"),
        (lambda: _simt.attend(x, x, x, x, x, 2, 2, 257, 1, 1.0, 1, x, x, "f16", -1, 0), "width must be 1 to 256, got"),
        (lambda: _simt.attend(x, x, x, x, x, 2, 2, 4, 1, 1.0, 0, x, x, "f16", -1, 0), "splits must be 1 to 65535"),
        (lambda: _simt.gate(x, x, 1, 4, "f32", -1, 0), "type must be f16 or bf16, got 'f32'"),
    ]:
        with pytest.raises(ValueError, match=word):
            call()


def test_the_native_call_checks_its_sizes() -> None:
    gpu = on_loops(pack("f16", 0, (17, 65), 0.5, None))
    x, y = inputs(2, 65, torch.float16), torch.empty(2, 17, dtype=torch.float16)

    def call(**changed: object) -> None:
        given = {
            "weight": gpu._weight, "x": x.data_ptr(), "x_stride": 65, "type": "f16", "tokens": 2, "y": y.data_ptr(),
            "y_stride": 17, "bias": 0, "splits": 1, "partials": 0, "counters": 0, "device": -1, "stream": 0,
        }  # fmt: skip
        _simt.linear(**{**given, **changed})

    call()
    for change, word in [
        ({"tokens": 0}, "tokens must be 1 to 64, got 0"),
        ({"tokens": 65}, "tokens must be 1 to 64, got 65"),
        ({"x_stride": 64}, "strides must be at least"),
        ({"x": 0}, "x must not be null"),
        ({"type": "f32"}, "type must be f16 or bf16, got 'f32'"),
        ({"type": "bf16"}, "no kernel multiplies f16 weights with bf16 activations"),
        ({"weight": _simt.DeviceWeight("bitmap", "f16", 17, 65)}, "no records yet"),
    ]:
        with pytest.raises(ValueError, match=word):
            call(**change)
    with pytest.raises(RuntimeError, match="bitmap_linear_f16_f16__cuda: this build runs kernels on the processor"):
        call(device=0)
    with pytest.raises(ValueError, match="too large for a GPU"):
        _simt.DeviceWeight("bitmap", "f16", 1 << 28, 1 << 16)
