"""More of the forms that others store, as in `stored_forms_tools`: rarer kinds of each, torchao and marlin-24."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stored_forms import FORMS, Form, Parts, Store, compressed_tensors, float_quantized, integers, product, words


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _with_points(values: Tensor, bits: int, group: int, sym: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unsigned numbers, zero points and scales of groups, and the values that they stand for."""
    cols = values.shape[1]
    codes, scales = integers(values, bits, group)
    points = torch.full(scales.shape, 1 << bits - 1)
    if not sym:
        points = torch.randint(0, 1 << bits, scales.shape, generator=_seeded(4))
    each = points.repeat_interleave(group or cols, 1)[:, :cols]
    numbers = (codes + each).clamp(0, (1 << bits) - 1)
    return numbers, points, scales, product(numbers - each, scales, group)


def gptq(bits: int, group: int = 0, *, version: int = 1, sym: bool = True, order: bool = False) -> Store:
    def store(values: Tensor) -> tuple[Parts, Tensor]:
        cols = values.shape[1]
        mixed = torch.randperm(cols, generator=_seeded(2)) if order else torch.arange(cols)
        numbers, points, scales, dense = _with_points(values[:, mixed], bits, group, sym)
        back = mixed.argsort()
        return {
            "qweight": words(numbers[:, back], bits).T,
            "qzeros": words(((points - int(version == 1)) % (1 << bits)).T, bits),
            "scales": scales.T,
            "g_idx": (back // (group or cols)).int(),
        }, dense[:, back]

    return store


def gptq_config(bits: int, group: int, version: int = 1, **more: Any) -> dict[str, Any]:
    form = {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": group or -1, **form, **more}}


_HALF = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
_TABLES = {"fp4": torch.cat([_HALF, -_HALF])}  # values by their bits


def bnb_4bit(kind: str, *, nested: bool, block: int = 64) -> Store:
    def nearest(values: Tensor, table: Tensor) -> Tensor:
        return (values[..., None] - table).abs().argmin(-1)

    def store(values: Tensor) -> tuple[Parts, Tensor]:
        table, blocks = _TABLES[kind], values.reshape(-1, block)
        largest = blocks.abs().amax(1).clamp(min=1e-3)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "float32"}
        parts, outer = {"weight.quant_map": table.clone(), "weight.absmax": largest}, largest
        if nested:
            offset, wide = float(largest.mean()), torch.linspace(-1, 1, 256)
            padded = torch.nn.functional.pad(largest - offset, (0, -len(largest) % 256)).view(-1, 256)
            most = padded.abs().amax(1).clamp(min=1e-3)
            codes = nearest(padded / most[:, None], wide)
            outer = (wide[codes] * most[:, None] + offset).view(-1)[: len(largest)]
            parts |= {"weight.absmax": codes.view(-1)[: len(largest)].to(torch.uint8), "weight.nested_absmax": most}
            parts |= {"weight.nested_quant_map": wide}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        codes = nearest(blocks / outer[:, None], table)
        text = json.dumps({**state, "shape": list(values.shape)}).encode()
        pairs = codes.view(-1, 2)
        parts["weight"] = (pairs[:, :1] * 16 + pairs[:, 1:]).to(torch.uint8)
        parts[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
        return parts, (table[codes] * outer[:, None]).view(values.shape)

    return store


def bnb_config(bits: int) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True}}


_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def fp4(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, two in a byte with the first low, of what is scaled to 6 at most, and their values."""
    codes = (values.abs()[..., None] - _FP4).abs().argmin(-1)
    rounded = _FP4[codes].copysign(values)
    codes = codes + 8 * (values < 0)
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8), rounded


def modelopt_nvfp4(values: Tensor) -> tuple[Parts, Tensor]:
    whole = torch.tensor(1 / 400)
    groups = values.unflatten(-1, (-1, 16)).abs().amax(-1).clamp(min=1e-3) / 6
    scales = (groups / whole).to(torch.float8_e4m3fn)
    each = (scales.float() * whole).repeat_interleave(16, 1)
    codes, rounded = fp4(values / each)
    return {"weight": codes, "weight_scale": scales, "weight_scale_2": whole.clone()}, rounded * each


def _kernel_order(bits: int) -> list[int]:
    order = [
        16 * (2 * (thread % 4) + row) + thread // 8 * 256 + 8 * (thread // 4 % 2) + block + j
        for thread in range(32)
        for j in range(4)
        for block in (0, 4)
        for row in (0, 1, 8, 9)
    ]
    within = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}[bits]
    return [order[start + i] for start in range(0, 1024, len(within)) for i in within]


def _kernel_meta(places: Tensor) -> Tensor:
    """Places [rows, cols / 4, 2] as 16-bit words, in the order of CUTLASS."""
    rows, words_of_row = len(places), places.shape[1] // 4
    found = torch.zeros(rows * words_of_row, dtype=torch.int64)
    for row in range(rows):
        place = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row % 64 // 8 * 4
        for col in range(words_of_row):
            down, across = place, col
            if place % 2 == 0 and col % 2 == 1:
                down, across = place + 1, col - 1
            elif place % 2 == 1 and col % 2 == 0:
                down, across = place - 1, col + 1
            own = places[row, 4 * col : 4 * col + 4].reshape(-1).tolist()
            word = sum(value << 2 * i for i, value in enumerate(own))
            found[across // 2 * rows * 2 + down * 2 + across % 2] = word
    return torch.from_numpy(found.numpy().astype("<u2").view("<i2"))


def marlin_24(bits: int, group: int = 0) -> Store:
    def store(values: Tensor) -> tuple[Parts, Tensor]:
        rows, cols = values.shape
        codes, scales = integers(values, bits, group)
        places = codes.view(rows, -1, 4).abs().argsort(2)[..., 2:].sort(2).values
        kept = codes.view(rows, -1, 4).gather(2, places).view(rows, -1)
        turned = kept.T + (1 << bits - 1)  # [cols / 2, rows]
        tiles = turned.reshape(-1, 16, rows // 16, 16).swapaxes(1, 2).reshape(cols // 32, rows * 16)
        mixed = tiles.view(-1, 1024)[:, _kernel_order(bits)].reshape(tiles.shape)
        runs = scales.T.contiguous()
        if group and group < cols // 2:
            order = [8 * i + j for i in range(8) for j in (0, 4, 1, 5, 2, 6, 3, 7)]
            runs = runs.view(-1, 64)[:, order].reshape(runs.shape)
        meta = _kernel_meta(places).view(cols // 32, 2 * rows)
        return {"weight_packed": words(mixed, bits), "scale_packed": runs, "meta": meta}, product(codes, scales, group)

    return store


def torchao(kind: str, inner: Store) -> Form:
    def store(values: Tensor) -> tuple[Parts, Tensor]:
        parts, dense = inner(values)
        return {"_weight_qdata": parts["weight"], "_weight_scale": parts["weight_scale"]}, dense

    return Form(
        store,
        {"quantization_config": {"quant_method": "torchao"}},
        metadata=lambda names: {name: json.dumps({"_type": kind, "_data": {}}) for name in names},
    )


QUANTIZED: dict[str, Form] = {
    **{
        f"gptq zero points of any size, {bits} bits, version {version}": Form(
            gptq(bits, 32, version=version, sym=False), gptq_config(bits, 32, version, sym=False)
        )
        for bits in (2, 3, 4)
        for version in (1, 2)
    },
    **{
        f"bitsandbytes {kind}{' nested' * nested}": Form(
            bnb_4bit(kind, nested=nested),
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        )
        for kind, nested in (("fp4", False), ("fp4", True))
    },
    "modelopt nvfp4": Form(modelopt_nvfp4, {"quantization_config": {"quant_method": "modelopt"}}),
    **{
        f"marlin-24 {bits} bits{' groups' * bool(group)}": Form(
            marlin_24(bits, group),
            compressed_tensors("marlin-24", num_bits=bits, group_size=group or None),
            patterns=("2:4",),
        )
        for bits in (4, 8)
        for group in (0, 128)
    },
    "torchao float8": torchao("Float8Tensor", float_quantized),
    "torchao int8": torchao("Int8Tensor", FORMS["int-quantized channel"].store),
}
QUANTIZED = {name: replace(form, patterns=[p for p in form.patterns if p != "4:8"]) for name, form in QUANTIZED.items()}
