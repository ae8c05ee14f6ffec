"""More forms of `stored_forms`: what GPTQ, AWQ, bitsandbytes and 4-bit floats look like in files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stored_forms import Form, Parts, Store, compressed_tensors, integers, product, words

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs lies at each place of an AWQ word
_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_NF4 = np.linspace(-1, 1, 15).tolist()  # any table will do, as long as zero is in it


def spread(groups: Tensor, group: int, cols: int) -> Tensor:
    return groups.repeat_interleave(group or cols, 1)[:, :cols]


def gptq(bits: int, group: int, *, zero: int | None = None, version: int = 1, order: bool = False) -> Store:
    """Whole numbers in words along the inputs; zero: of every group, None for the middle."""

    def store(values: Tensor) -> tuple[Parts, Tensor]:
        rows, cols = values.shape
        mixed = torch.arange(cols) if not order else torch.randperm(cols, generator=torch.Generator().manual_seed(2))
        codes, scales = integers(values[:, mixed], bits, group)
        half = 1 << bits - 1
        point = half if zero is None else zero
        stored = (codes + point).clamp(0, 2 * half - 1)
        stands_for = torch.empty_like(values)
        stands_for[:, mixed] = product(stored - point, scales, group)
        place = torch.empty_like(stored)
        place[:, mixed] = stored
        groups = torch.empty(cols, dtype=torch.int32)
        groups[mixed] = (torch.arange(cols) // (group or cols)).int()
        points = torch.full((scales.shape[1], rows), point - (version == 1))
        return {
            "qweight": words(place, bits).T,
            "qzeros": words(points, bits),
            "scales": scales.T,
            "g_idx": groups,
        }, stands_for

    return store


def unordered(store: Store) -> Store:
    """The same with -1 for the group of each input, as some write it where inputs lie in order."""

    def changed(values: Tensor) -> tuple[Parts, Tensor]:
        parts, stands_for = store(values)
        return parts | {"g_idx": torch.full_like(parts["g_idx"], -1)}, stands_for

    return changed


def gptq_config(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": group or -1, **more}}


def awq(group: int, zero: int) -> Store:
    def pack(numbers: Tensor) -> Tensor:
        return words(numbers.view(len(numbers), -1, 8)[..., _ORDER].reshape(numbers.shape), 4)

    def store(values: Tensor) -> tuple[Parts, Tensor]:
        codes, scales = integers(values, 4, group)
        stored = (codes + zero).clamp(0, 15)
        points = torch.full((scales.shape[1], len(values)), zero)
        return {"qweight": pack(stored.T), "qzeros": pack(points), "scales": scales.T}, product(
            stored - zero, scales, group
        )

    return store


def bnb_int8(values: Tensor) -> tuple[Parts, Tensor]:
    largest = values.abs().amax(1).clamp(min=1e-3)
    codes = (values / largest[:, None] * 127).round()
    parts = {"weight": codes.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes * (largest / 127)[:, None]


def bnb_table(nested: bool) -> Store:
    def store(values: Tensor) -> tuple[Parts, Tensor]:
        block, table = 64, torch.tensor([*_NF4, 1.0])
        flat = values.reshape(-1)
        largest = flat.view(-1, block).abs().amax(1).clamp(min=1e-3)
        state: dict[str, Any] = {
            "blocksize": block,
            "shape": list(values.shape),
            "dtype": "float16",
            "quant_type": "nf4",
        }
        parts: Parts = {"weight.absmax": largest}
        if nested:
            inner, offset = 256, float(largest.mean())
            map8 = torch.linspace(-1, 1, 256)
            moved = torch.nn.functional.pad(largest - offset, (0, -len(largest) % inner))
            most = moved.view(-1, inner).abs().amax(1)
            bits = ((moved.view(-1, inner) / most[:, None])[..., None] - map8).abs().argmin(-1).view(-1)[: len(largest)]
            parts = {
                "weight.absmax": bits.to(torch.uint8),
                "weight.nested_absmax": most,
                "weight.nested_quant_map": map8,
            }
            state |= {"nested_blocksize": inner, "nested_offset": offset, "nested_dtype": "float32"}
            largest = map8[bits] * most.repeat_interleave(inner)[: len(bits)] + torch.tensor(offset)
        codes = (flat.view(-1, block, 1) / largest[:, None, None] - table).abs().argmin(-1)
        stands_for = (table[codes] * largest[:, None]).view(values.shape)
        pairs = codes.view(-1, 2)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        return parts | {
            "weight": (pairs[:, 0] << 4 | pairs[:, 1]).to(torch.uint8)[:, None],
            "weight.quant_map": table,
            "weight.quant_state.bitsandbytes__nf4": torch.from_numpy(text),
        }, stands_for

    return store


def fp4_codes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the nearest 4-bit floats, and those."""
    nearest = (values.abs()[..., None] - _FP4).abs().argmin(-1)
    negative = values < 0
    return nearest + 8 * negative, torch.where(negative, -_FP4[nearest], _FP4[nearest])


def pairs(codes: Tensor) -> Tensor:
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)


def mxfp4(values: Tensor) -> tuple[Parts, Tensor]:
    exponents = values.view(len(values), -1, 32).abs().amax(2).clamp(min=1e-6).log2().floor() - 2
    each = spread(2.0**exponents, 32, values.shape[1])
    codes, numbers = fp4_codes(values / each)
    return {"weight_packed": pairs(codes), "weight_scale": (exponents + 127).to(torch.uint8)}, numbers * each


def nvfp4(values: Tensor) -> tuple[Parts, Tensor]:
    whole = torch.tensor([448 * 6 / float(values.abs().max())])
    scales = (values.view(len(values), -1, 16).abs().amax(2) / 6 * whole).to(torch.float8_e4m3fn)
    each = spread(scales.float() / whole, 16, values.shape[1])
    codes, numbers = fp4_codes(torch.where(each == 0, torch.zeros(()), values / each))
    parts = {"weight_packed": pairs(codes), "weight_scale": scales, "weight_global_scale": whole}
    return parts, (2 * numbers) * (scales.float() / whole * 0.5).repeat_interleave(16, 1)


TOOLS: dict[str, Form] = {
    **{
        f"gptq {bits} bits": Form(gptq(bits, 64), gptq_config(bits, 64), "int4" if bits < 8 else "int8")
        for bits in (2, 3, 4, 8)
    },
    "gptq rows": Form(gptq(4, 0), gptq_config(4, 0), "int4"),
    "gptq v2": Form(gptq(4, 32, version=2), gptq_config(4, 32, checkpoint_format="gptq_v2"), "int4"),
    "gptq zero points": Form(gptq(4, 32, zero=5), gptq_config(4, 32, sym=False), "int4"),
    "gptq without an order": Form(unordered(gptq(4, 32)), gptq_config(4, 32), "int4"),
    "gptq act-order": Form(gptq(4, 32, order=True), gptq_config(4, 32, desc_act=True)),
    "awq": Form(awq(64, 8), {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}, "int4"),
    "awq zero points": Form(
        awq(32, 6), {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}, "int4"
    ),
    "bitsandbytes int8": Form(
        bnb_int8, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    ),
    **{
        f"bitsandbytes nf4{', nested' * nested}": Form(
            bnb_table(nested), {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        )
        for nested in (False, True)
    },
    "mxfp4": Form(mxfp4, compressed_tensors("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32), "int8"),
    "nvfp4": Form(nvfp4, compressed_tensors("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16)),
}
