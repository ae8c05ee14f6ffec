"""Tiny checkpoints in the forms that others store, by writers of a few lines each that share nothing with the readers.

A form turns a matrix into its parts, by what they are called in the module, and says which values they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tiny import save_tokenizer, tiny_config, tiny_tensors

CONFIG = tiny_config(hidden_size=128, intermediate_size=192, num_hidden_layers=1, head_dim=32)
PATTERNS = ("unstructured", "2:4", "4:8")
Parts = dict[str, Tensor]
Store = Callable[[Tensor], tuple[Parts, Tensor]]


@dataclass(frozen=True)
class Form:
    """How matrices are stored.

    Attributes:
        store: From values to parts, and the values that they stand for.
        config: What config.json says of it.
        kept: Type of packed weights where whole numbers stay what they are; empty where they are floats.
        patterns: Patterns of zeros that it can have.
        zeros: Whether zeros are zeros in it.
        metadata: Of the file, from the names of matrices.
    """

    store: Store
    config: dict[str, Any] = field(default_factory=dict)
    kept: str = ""
    patterns: Sequence[str] = PATTERNS
    zeros: bool = True
    metadata: Callable[[list[str]], dict[str, str]] = lambda _: {}


def matrices(pattern: str) -> dict[str, Tensor]:
    """The tensors of a tiny model, with half of each matrix of a block zero."""
    tensors = {name: torch.from_numpy(values) for name, values in tiny_tensors(CONFIG, seed=3).items()}
    for name, values in tensors.items():
        if "_proj" in name:
            kept, length = {"unstructured": (values.shape[1] // 2, values.shape[1]), "2:4": (2, 4), "4:8": (4, 8)}[
                pattern
            ]
            groups = values.view(len(values), -1, length)
            groups[groups.abs().argsort(2).argsort(2) < length - kept] = 0
    return tensors


def write(folder: Path, form: Form, pattern: str = "unstructured") -> tuple[Path, dict[str, Tensor]]:
    """Writes a checkpoint folder; returns it, and the dense values of all tensors."""
    folder.mkdir()
    stored, dense = {}, matrices(pattern)
    names = [name for name in dense if "_proj" in name]
    for name in names:
        parts, dense[name] = form.store(dense[name])
        stored |= {name.removesuffix("weight") + part: values.contiguous() for part, values in parts.items()}
    stored |= {name: values for name, values in dense.items() if name not in names}
    save_file(stored, folder / "model.safetensors", form.metadata(names))
    (folder / "config.json").write_text(json.dumps({**CONFIG, **form.config}))
    save_tokenizer(folder)
    return folder, dense


# --- numbers ----------------------------------------------------------------------------------------------------------


def integers(values: Tensor, bits: int, group: int = 0, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """Symmetric whole numbers [rows, cols] and scales [rows, groups]."""
    rows, cols = values.shape
    padded = torch.nn.functional.pad(values, (0, -cols % (group or cols))).view(rows, -1, group or cols)
    scales = (padded.abs().amax(2).clamp(min=1e-3) / (2 ** (bits - 1) - 1 or 1)).to(dtype)
    codes = (padded / scales.float()[..., None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.view(rows, -1)[:, :cols].to(torch.int64), scales


def product(codes: Tensor, scales: Tensor, group: int = 0) -> Tensor:
    cols = codes.shape[1]
    return codes.float() * scales.float().repeat_interleave(group or cols, 1)[:, :cols]


def words(numbers: Tensor, bits: int, straddle: bool = True) -> Tensor:
    """Packs unsigned numbers along the last axis into 32-bit words, low bits first."""
    rows = []
    for row in numbers.tolist():
        fit = len(row) if straddle else 32 // bits
        text = b""
        for start in range(0, len(row), fit):
            whole = sum(value << bits * place for place, value in enumerate(row[start : start + fit]))
            text += whole.to_bytes(-(-len(row) * bits // 32) * 4 if straddle else 4, "little")
        rows.append(np.frombuffer(text, np.int32))
    return torch.from_numpy(np.array(rows))


def fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit floats with a scale a row."""
    scales = (values.abs().amax(1, keepdim=True) / 448).to(torch.bfloat16)
    return (values / scales.float()).to(torch.float8_e4m3fn), scales


# --- compressed-tensors -----------------------------------------------------------------------------------------------


def compressed_tensors(form: str, **weights: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": ["lm_head"],
        }
    }


def dense(dtype: torch.dtype) -> Store:
    return lambda values: ({"weight": values.to(dtype)}, values.to(dtype).float())


def bits_of(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little"))


def bitmask(values: Tensor) -> Parts:
    mask = values.float() != 0
    counts = mask.sum(1)
    return {
        "compressed": values[mask],
        "bitmask": bits_of(mask),
        "row_offsets": counts.cumsum(0) - counts,
        "shape": torch.tensor(values.shape),
    }


def bitmask_24(values: Tensor) -> Parts:
    size = values.float().abs().view(len(values), -1, 4)
    mask = (size.argsort(2).argsort(2) >= 2).view(values.shape)
    return {
        "compressed": values[mask].view(len(values), -1),
        "bitmask": bits_of(mask),
        "shape": torch.tensor(values.shape)[:, None],
    }


def sparse(inner: Store, pack: Callable[[Tensor], Parts], prefix: str = "") -> Store:
    """A bit mask over what another form has as `weight`."""

    def store(values: Tensor) -> tuple[Parts, Tensor]:
        parts, stands_for = inner(values)
        weight = parts.pop("weight")
        return parts | {prefix + part: data for part, data in pack(weight).items()}, stands_for

    return store


def int_quantized(bits: int, group: int = 0, dtype: torch.dtype = torch.bfloat16) -> Store:
    def store(values: Tensor) -> tuple[Parts, Tensor]:
        codes, scales = integers(values, bits, group, dtype)
        return {"weight": codes.to(torch.int8), "weight_scale": scales}, product(codes, scales, group)

    return store


def int_whole(values: Tensor) -> tuple[Parts, Tensor]:
    """One scale for all, and an old writer's zero points."""
    codes, scales = integers(values.reshape(1, -1), 8)
    codes = codes.view(values.shape)
    parts = {"weight": codes.to(torch.int8), "weight_scale": scales.view(1), "weight_zero_point": torch.zeros(1).char()}
    return parts, product(codes, scales.expand(len(values), 1))


def float_quantized(values: Tensor) -> tuple[Parts, Tensor]:
    codes, scales = fp8(values)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales.float()


def fp8_blocks(values: Tensor) -> tuple[Parts, Tensor]:
    rows, cols = values.shape
    scales = torch.rand(-(-rows // 128), -(-cols // 128), generator=torch.Generator().manual_seed(1)) * 0.01 + 0.01
    each = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
    codes = (values / each).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}, codes.float() * each


def mxfp8(values: Tensor) -> tuple[Parts, Tensor]:
    exponents = values.view(len(values), -1, 32).abs().amax(2).clamp(min=1e-6).log2().floor() - 8
    each = (2.0**exponents).repeat_interleave(32, 1)
    codes = (values / each).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": (exponents + 127).to(torch.uint8)}, codes.float() * each


def pack_quantized(bits: int, group: int = 0, *, straddle: bool = True, zero: int = 0, order: bool = False) -> Store:
    def store(values: Tensor) -> tuple[Parts, Tensor]:
        rows, cols = values.shape
        mixed = torch.arange(cols) if not order else torch.randperm(cols, generator=torch.Generator().manual_seed(2))
        codes, scales = integers(values[:, mixed], bits, group, torch.bfloat16)
        half = 1 << bits - 1
        points = torch.zeros_like(scales).long() + zero
        codes = (codes * (2 if zero else 1) + zero).clamp(-half, half - 1)
        stands_for = torch.empty_like(values)
        stands_for[:, mixed] = product(codes - points.repeat_interleave(group or cols, 1)[:, :cols], scales, group)
        place = torch.empty_like(codes)
        place[:, mixed] = codes
        parts = {
            "weight_packed": words(place + half, bits, straddle),
            "weight_scale": scales,
            "weight_shape": torch.tensor([rows, cols]),
        }
        if zero:
            parts["weight_zero_point"] = words((points + half).T, bits, straddle).T
        if order:
            groups = torch.empty(cols, dtype=torch.int32)
            groups[mixed] = (torch.arange(cols) // group).int()
            parts["weight_g_idx"] = groups
        return parts, stands_for

    return store


def parameters(inner: Store) -> Store:
    """A bit mask over every part of another form, as releases up to 0.8 have it."""

    def store(values: Tensor) -> tuple[Parts, Tensor]:
        parts, stands_for = inner(values)
        return {f"{name}.{part}": data for name, of in parts.items() for part, data in bitmask(of).items()}, stands_for

    return store


def loose_points(inner: Store) -> Store:
    """Zero points that are not packed, as releases up to 0.8 have them; 3 for all groups."""

    def store(values: Tensor) -> tuple[Parts, Tensor]:
        parts, stands_for = inner(values)
        return parts | {"weight_zero_point": torch.full_like(parts["weight_scale"], 3).char()}, stands_for

    return store


def masked(dtype: torch.dtype) -> Store:
    def store(values: Tensor) -> tuple[Parts, Tensor]:
        mask = values != 0
        filled = torch.where(mask, values, torch.ones_like(values)).to(dtype)
        return {"weight_orig": filled, "weight_mask": mask.to(dtype)}, filled.float() * mask

    return store


SPARSE = {"sparsity_config": {"format": "sparse-bitmask", "targets": ["Linear"], "sparsity_structure": "2:4"}}
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
INT8 = compressed_tensors("int-quantized", num_bits=8, strategy="channel")
FP8 = compressed_tensors("float-quantized", num_bits=8, type="float", strategy="channel")


def packed_config(bits: int, group: int = 0, **more: Any) -> dict[str, Any]:
    return compressed_tensors("pack-quantized", num_bits=bits, group_size=group or None, **more)


FORMS: dict[str, Form] = {
    **{f"dense {name}": Form(dense(dtype)) for name, dtype in FLOATS.items()},
    **{f"masked {name}": Form(masked(dtype)) for name, dtype in FLOATS.items()},
    **{f"sparse-bitmask {name}": Form(sparse(dense(dtype), bitmask), SPARSE) for name, dtype in FLOATS.items()},
    **{
        f"sparse-bitmask parameters {name}": Form(sparse(dense(dtype), bitmask, "weight."), SPARSE)
        for name, dtype in FLOATS.items()
    },
    **{
        f"sparse-24-bitmask {name}": Form(sparse(dense(dtype), bitmask_24), SPARSE, patterns=("2:4",))
        for name, dtype in FLOATS.items()
    },
    "sparse-bitmask int8": Form(sparse(int_quantized(8), bitmask), {**INT8, **SPARSE}, "int8"),
    "sparse-bitmask parameters int8": Form(parameters(int_quantized(8)), {**INT8, **SPARSE}, "int8"),
    "sparse-bitmask fp8": Form(sparse(float_quantized, bitmask), {**FP8, **SPARSE}),
    "sparse-24-bitmask int8": Form(sparse(int_quantized(8), bitmask_24), {**INT8, **SPARSE}, "int8", ("2:4",)),
    "sparse-24-bitmask fp8": Form(sparse(float_quantized, bitmask_24), {**FP8, **SPARSE}, patterns=("2:4",)),
    "int-quantized channel": Form(int_quantized(8), INT8, "int8"),
    "int-quantized tensor": Form(int_whole, compressed_tensors("int-quantized", num_bits=8), "int8"),
    "int-quantized group 64": Form(
        int_quantized(8, 64), compressed_tensors("int-quantized", num_bits=8, group_size=64), "int8"
    ),
    "naive-quantized int4": Form(
        int_quantized(4, 128), compressed_tensors("naive-quantized", num_bits=4, group_size=128), "int4"
    ),
    "naive-quantized f32 scales": Form(
        int_quantized(8, 0, torch.float32), compressed_tensors("naive-quantized", num_bits=8)
    ),
    "float-quantized": Form(float_quantized, FP8),
    "fp8 blocks": Form(fp8_blocks, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
    "mxfp8": Form(mxfp8, compressed_tensors("mxfp8-quantized", num_bits=8, type="float", group_size=32)),
    **{
        f"pack-quantized {bits} bits": Form(pack_quantized(bits, 64), packed_config(bits, 64), kept)
        for bits, kept in ((2, "int4"), (3, "int4"), (4, "int4"), (5, "int8"), (6, "int8"), (7, "int8"), (8, "int8"))
    },
    **{
        f"pack-quantized {bits} bits, whole in a word": Form(
            pack_quantized(bits, straddle=False), packed_config(bits), "int4" if bits < 5 else "int8"
        )
        for bits in (3, 5, 6, 7)
    },
    "pack-quantized rows": Form(pack_quantized(4), packed_config(4), "int4"),
    "pack-quantized 128 of 192": Form(pack_quantized(4, 128), packed_config(4, 128), "int4"),
    "pack-quantized zero points": Form(
        pack_quantized(4, 32, zero=3), packed_config(4, 32, symmetric=False), "int8", zeros=True
    ),
    "pack-quantized zero points, not packed": Form(
        loose_points(pack_quantized(4, 32, zero=3)), packed_config(4, 32, symmetric=False), "int8"
    ),
    "pack-quantized act-order": Form(pack_quantized(4, 32, order=True), packed_config(4, 32, actorder="group")),
    "pack-quantized group 16": Form(pack_quantized(4, 16), packed_config(4, 16)),
}
