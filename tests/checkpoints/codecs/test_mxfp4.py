"""gpt-oss as it is published: experts stacked, in 4-bit floats, outputs first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gossamer
from gossamer.checkpoints import open_checkpoint

pytest.importorskip("transformers", reason="makes the model")
torch = pytest.importorskip("torch", reason="writes the checkpoint")
safetensors = pytest.importorskip("safetensors.torch", reason="reads it")

CONFIG = {
    "model_type": "gpt_oss", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32, "vocab_size": 320,
    "max_position_embeddings": 64, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 8,
}  # fmt: skip


def test_experts_of_4_bit_floats_stay_what_they_are(tmp_path: Path) -> None:
    from stored_forms_tools import fp4_codes, pairs
    from tiny import made

    folder = made(tmp_path / "m", CONFIG)
    tensors = safetensors.load_file(folder / "model.safetensors")
    expected = {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        values = tensors.pop(name).float().swapaxes(1, 2)  # outputs first
        groups = values.reshape(*values.shape[:2], -1, 32)
        exponents = groups.abs().amax(-1).log2().floor() - 2
        codes, numbers = fp4_codes(groups / 2.0 ** exponents[..., None])
        tensors[f"{name}_blocks"] = pairs(codes)
        tensors[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        expected[name] = (numbers * 2.0 ** exponents[..., None]).reshape(values.shape).swapaxes(1, 2).numpy()
    safetensors.save_file({name: values.contiguous() for name, values in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), values)
    gossamer.convert(folder, tmp_path / "packed", weights="stored")
    model = gossamer.load(tmp_path / "packed", activations="f32")
    for name, source in checkpoint.sources().items():
        if ".experts." in name and not name.endswith("bias"):
            np.testing.assert_array_equal(model.weights[name].unpack(), source.read(expected[source.tensor]))
    assert isinstance(model.generate("The spider", chat=False, max_new_tokens=2), str)
