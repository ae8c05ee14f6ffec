"""Every form of every source against the dense values that it stands for: tensors, packed weights and logits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from gossamer.generation.ready import ready
from gossamer.packing.convert import pack_checkpoint
from quantized_forms import QUANTIZED
from reference_model import ReferenceModel
from stored_forms import FORMS as PLAIN
from stored_forms import Form, matrices, words, write
from stored_forms_tools import TOOLS

IDS = [(37 * i + 11) % 290 for i in range(24)]
FORMS = PLAIN | TOOLS | QUANTIZED
CASES = [(name, pattern) for name, form in FORMS.items() for pattern in form.patterns]


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_a_form_is_what_it_stands_for(tmp_path: Path, name: str, pattern: str) -> None:
    form = FORMS[name]
    folder, dense = write(tmp_path / "m", form, pattern)
    checkpoint = open_checkpoint(folder)
    assert sorted(checkpoint.names()) == sorted(dense)
    before = matrices(pattern)
    for tensor, values in dense.items():
        assert checkpoint.shape(tensor) == tuple(values.shape)
        np.testing.assert_array_equal(checkpoint.tensor(tensor), values.numpy())
        if form.zeros:
            assert not checkpoint.tensor(tensor)[before[tensor].numpy() == 0].any()
    packed = pack_checkpoint(checkpoint, weights="stored")
    sources = checkpoint.sources()
    for weight, stored in packed.weights.items():
        values = sources[weight].read(dense[sources[weight].tensor].numpy())
        np.testing.assert_array_equal(stored.unpack(), values, err_msg=weight)  # bit for bit
        if form.kept and "." in weight:
            assert stored.type == form.kept
    described = arch.family(checkpoint.config).describe(checkpoint.config)
    canonical = {key: source.read(dense[source.tensor].numpy()) for key, source in sources.items()}
    expected = ReferenceModel(described, canonical).logits(IDS)
    np.testing.assert_allclose(ready(packed, activations="f32").logits(IDS), expected, atol=5e-4)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.kept])
def test_whole_numbers_are_packed_as_they_are(tmp_path: Path, name: str) -> None:
    """Also where a type is asked for that holds them, unless scales are finer than asked for."""
    form = FORMS[name]
    folder, _ = write(tmp_path / "m", form)
    checkpoint = open_checkpoint(folder)
    tensor = "model.layers.0.mlp.down_proj.weight"
    for weights, group in (("auto", 64), (form.kept, 32), ("int8", 32)):
        packed = pack_checkpoint(checkpoint, weights=weights, group=group).weights["layers.0.down"]
        np.testing.assert_array_equal(packed.unpack(), checkpoint.tensor(tensor))
        assert packed.type == (form.kept if weights == "auto" else weights)


def test_finer_scales_than_asked_for_are_not_kept(tmp_path: Path) -> None:
    folder, _ = write(tmp_path / "m", FORMS["naive-quantized int4"])
    packed = pack_checkpoint(open_checkpoint(folder), weights="int4", group=0).weights["layers.0.down"]
    assert (packed.type, packed.group) == ("int4", 0)


def test_scales_that_no_half_holds_are_rounded_where_values_may_be(tmp_path: Path) -> None:
    folder, _ = write(tmp_path / "m", FORMS["naive-quantized f32 scales"])
    checkpoint = open_checkpoint(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    exact = checkpoint.codes(name)
    assert exact is not None
    assert pack_checkpoint(checkpoint, weights="stored").weights["layers.0.down"].type == "f32"
    codes, scales = pack_checkpoint(checkpoint, weights="int8").weights["layers.0.down"].codes()
    np.testing.assert_array_equal(codes, exact.codes)
    np.testing.assert_array_equal(scales, exact.scales.astype(np.float16))


@pytest.mark.parametrize(
    ("name", "weights", "told"),
    [
        ("bitsandbytes nf4", "auto", "nf4: they become int8, rounded once more"),
        ("nvfp4", "auto", "nvfp4: they become int8, rounded once more"),
        ("nvfp4", "stored", "nvfp4: they become f32, which holds their values"),
        ("gptq act-order", "auto", "int4: they become int8, rounded once more"),
        ("nvfp4", "int4", "nvfp4: they become int4, rounded once more"),
        ("mxfp4", "auto", None),
        ("mxfp4", "int8", "mxfp4: they become int8, rounded once more"),  # by scales that serve more inputs
        ("nvfp4", "bf16", None),  # which somebody asked for
        ("gptq 4 bits", "auto", None),
    ],
)
def test_what_is_not_kept_as_it_is_stored_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, weights: str, told: str | None
) -> None:
    folder, _ = write(tmp_path / "m", FORMS[name])
    with caplog.at_level(logging.WARNING, "gossamer"):
        pack_checkpoint(open_checkpoint(folder), weights=weights)
    lines = [record.getMessage() for record in caplog.records if "not kept as" in record.getMessage()]
    assert lines == ([f"m: 7 matrices are not kept as {told}"] if told else [])


def test_golden_vectors_of_packed_words() -> None:
    """The writer against words that were put together by hand, from the definition of the layouts."""
    four = torch.tensor([[-8, -1, 0, 1, 2, 3, 4, 7]]) + 8
    assert words(four, 4).tolist() == [[-54880144]]  # 0xfcba9870
    three = torch.tensor([[-4, -3, -2, -1, 0, 1, 2, 3, -4, -3, -2, -1]]) + 4
    assert [word & 0xFFFFFFFF for word in words(three, 3, straddle=False)[0].tolist()] == [0x08FAC688, 0x1A]
    assert [word & 0xFFFFFFFF for word in words(three, 3)[0].tolist()] == [0x88FAC688, 0x6]


def test_all_8_bit_floats() -> None:
    from gossamer.checkpoints.codecs.numbers import _table

    for name, dtype in (
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E8M0", torch.float8_e8m0fnu),
    ):
        theirs = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
        np.testing.assert_array_equal(_table(name), theirs)


@pytest.mark.parametrize("form", [Form(FORMS["int-quantized channel"].store)])
def test_forms_that_the_config_does_not_speak_of_are_told(tmp_path: Path, form: Form) -> None:
    folder, _ = write(tmp_path / "m", form)
    assert open_checkpoint(folder).notes == (
        f"{folder}/config.json: speaks of no quantization; the tensors have the form scaled",
    )


@pytest.mark.parametrize("name", ["gptq v2", "awq"])
@pytest.mark.parametrize("more", [{"adapter": {"name": "lora", "rank": 64}}, {"rotation": "hadamard"}])
def test_what_goes_with_whole_numbers_and_is_not_done_is_refused(
    tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    form = FORMS[name]
    (key,) = more
    for value in (None, more[key]):
        settings = {"quantization_config": form.config["quantization_config"] | {key: value}}
        folder, dense = write(tmp_path / str(value is None), replace(form, config=settings))
        if value is None:
            assert open_checkpoint(folder).tensor(next(iter(dense))).size
        else:
            with pytest.raises(GossamerError, match=f"config.json: {key} of its quantization is not supported, got "):
                open_checkpoint(folder)


def mutations(parts: dict[str, torch.Tensor], seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Parts of one matrix, each missing, cut, of another type, or with other bits."""
    random = np.random.default_rng(seed)
    for name, values in parts.items():
        yield {other: data for other, data in parts.items() if other != name}
        if values.ndim:
            yield {**parts, name: values[..., : values.shape[-1] // 2].contiguous()}
            yield {**parts, name: values[:0]}
        yield {**parts, name: values.to(torch.int16 if values.dtype != torch.int16 else torch.int64)}
        octets = random.integers(0, 256, values.numel() * values.element_size(), np.uint8)
        yield {**parts, name: torch.from_numpy(octets).view(values.dtype).view(values.shape)}


@pytest.mark.parametrize("name", [*TOOLS, *QUANTIZED])
def test_broken_parts_are_one_line_or_values(tmp_path: Path, name: str) -> None:
    folder, dense = write(tmp_path / "m", FORMS[name], FORMS[name].patterns[-1])
    path, weight = folder / "model.safetensors", "model.layers.0.mlp.down_proj.weight"
    with safe_open(path, "pt") as file:
        metadata, stored = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    own = {key: stored.pop(key) for key in list(stored) if key.startswith(weight.removesuffix("weight"))}
    refused: list[str] = []
    for parts in mutations(own, 7):
        save_file(stored | parts, path, metadata)
        try:
            values = open_checkpoint(folder).tensor(weight)
        except GossamerError as error:
            refused.append(str(error))
        else:
            assert values.shape == dense[weight].shape
    assert len(refused) >= 2 * len(own)
    for line in refused:
        assert str(folder) in line
        assert "\n" not in line
        assert "down_proj" in line or "config.json" in line
