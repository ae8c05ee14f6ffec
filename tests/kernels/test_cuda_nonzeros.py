"""The kernels for GPUs that loop over non-zeros, run as loops on the processor."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
_simt = pytest.importorskip("gossamer._simt", reason="needs an editable install, which builds the kernels as loops")

from cuda_cases import (  # noqa: E402
    DTYPES,
    GROUPS,
    TOKENS,
    TYPES,
    check,
    codes_or_bits,
    dtypes_for,
    inputs,
    pack,
)
from cuda_loops import on_loops  # noqa: E402
from gossamer.gpu.cuda import CudaWeight  # noqa: E402


def entries(gpu: CudaWeight) -> np.ndarray:
    """What the entries say, decoded one after the other: [rows, cols], codes of integer types, the bits of floats."""
    found = gpu._nonzeros
    assert found is not None
    out = np.zeros((gpu.rows, gpu.cols), np.int32)
    offsets, steps, raw = found.offsets.numpy(), found.steps.int().numpy(), found.values.numpy()
    if gpu.type == "int4":
        raw = np.stack([raw & 15, raw >> 4], 1).reshape(-1)
    values = (
        raw.view(np.uint16).astype(int) if gpu.type in DTYPES else raw.astype(int) - (128 if gpu.type == "int8" else 8)
    )
    for row in range(gpu.rows):
        for chunk in range(found.chunks):
            at = 4096 * chunk
            first, last = offsets[row * found.chunks + chunk], offsets[row * found.chunks + chunk + 1]
            for i in range(4 * first, 4 * last):
                at += steps[i]
                if values[i] != 0:
                    assert out[row, at] == 0
                    out[row, at] = values[i]
    return out


@pytest.mark.parametrize("type", TYPES)
def test_entries_hold_the_stored_values(type: str) -> None:
    for shape, zeros in [((1, 1), 0.0), ((17, 65), 0.5), ((33, 700), 0.99), ((20, 9000), 0.999), ((5, 4097), 1.0)]:
        weight = pack(type, GROUPS[type][-1], shape, zeros, None, "csr")
        stored = codes_or_bits(weight, gpu := on_loops(weight, loop=True))[0]
        np.testing.assert_array_equal(entries(gpu), stored)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_number_of_tokens_of_very_sparse_weights(type: str, tokens: int) -> None:
    for group in GROUPS[type]:
        for shape, zeros in [((70, 650), 0.9), ((35, 4200), 0.97), ((3, 200), 1.0)]:
            weight = pack(type, group, shape, zeros, None, "csr")
            gpu = on_loops(weight)
            assert gpu._nonzeros is not None
            for dtype in dtypes_for(type):
                check(weight, gpu, inputs(tokens, shape[1], dtype), torch.linspace(-2, 2, shape[0]).to(dtype))


@pytest.mark.parametrize("type", ["bf16", "int4"])
def test_the_loop_gives_a_token_the_same_in_any_company_and_order(type: str, order: str) -> None:
    weight = pack(type, GROUPS[type][-1], (70, 8500), 0.9, None)
    gpu = on_loops(weight)
    x = inputs(4, 8500, torch.bfloat16)
    found = [gpu.linear(x[:tokens]) for tokens in (1, 2, 3, 4)] + [gpu.linear(x)]  # counters are zero again
    _simt.schedule(backwards=False, late_copies=False)
    for y in found:
        assert torch.equal(y, gpu.linear(x)[: len(y)])
    del order


def test_when_there_is_a_loop() -> None:
    assert [on_loops(pack("f16", 0, (64, 512), s, None))._nonzeros is not None for s in (0.5, 0.75, 0.85)] == [0, 0, 1]
    weight = pack("f16", 0, (64, 512), 0.5, None)
    gpu = on_loops(weight, loop=True)
    assert on_loops(weight)._nonzeros is None
    assert gpu.nbytes == gpu._nonzeros.nbytes
    twin, x = gpu.clone(), inputs(3, 512, torch.float16)
    expected = gpu.linear(x)
    gpu._nonzeros.values.zero_()
    assert torch.equal(twin.linear(x), expected)
    assert not torch.equal(gpu.linear(x), expected)
    stacked = CudaWeight.stack([twin, twin.clone()])
    assert stacked is not None
    assert torch.equal(stacked.linear(x), torch.cat([expected, expected], -1))
    assert CudaWeight.stack([twin, on_loops(weight)])._nonzeros is None


def test_the_native_loop_checks_its_sizes() -> None:
    x = torch.zeros(64, dtype=torch.float16).data_ptr()

    def call(
        type: str = "f16", cols: int = 8, tokens: int = 1, rows_each: int = 1, with_: str = "f16", at: int = x
    ) -> None:
        _simt.nonzeros_linear(type, 4, cols, 0, at, x, x, 0, x, 1, with_, tokens, x, 4, 0, rows_each, 0, 0, -1, 0)

    for change, word in [
        ({"tokens": 5}, "tokens must be 1 to 4, got 5"),
        ({"tokens": 2}, "strides must be at least"),
        ({"rows_each": 0}, "rows_each must be positive, got 0"),
        ({"at": 0}, "offsets must not be null"),
        ({"type": "int8"}, "scales must not be null"),
        ({"cols": 5000}, "partials must not be null"),
        ({"with_": "bf16"}, "no kernel multiplies f16 weights with bf16 activations"),
    ]:
        with pytest.raises(ValueError, match=word):
            call(**change)
