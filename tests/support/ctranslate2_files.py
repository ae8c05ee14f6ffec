"""Tiny Whispers in the form of CTranslate2, by a writer of a few lines that shares nothing with the reader."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny import save_tokenizer

WIDTH, INNER, HEADS, VOCAB, MELS, FRAMES, CONTEXT = 16, 24, 2, 320, 8, 20, 12
SCALARS = {
    "decoder/activation": (1, b"\x03"),
    "decoder/alignment_heads": (2, b"\x01\x00"),
    "decoder/alignment_layer": (2, b"\xff\xff"),
    "decoder/num_heads": (2, b"\x02\x00"),
    "decoder/pre_norm": (1, b"\x01"),
    "decoder/scale_embeddings": (1, b"\x00"),
    "encoder/num_heads": (2, b"\x02\x00"),
}
Arrays = dict[str, NDArray[Any]]


def whisper_tensors(seed: int = 0) -> Arrays:
    """Tensors of a Whisper with a layer on each side, under the names of transformers."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (WIDTH, MELS, 3),
        "encoder.conv1.bias": (WIDTH,),
        "encoder.conv2.weight": (WIDTH, WIDTH, 3),
        "encoder.conv2.bias": (WIDTH,),
        "encoder.embed_positions.weight": (FRAMES, WIDTH),
        "decoder.embed_positions.weight": (CONTEXT, WIDTH),
        "decoder.embed_tokens.weight": (VOCAB, WIDTH),
    }
    for side in ("encoder", "decoder"):
        at = f"{side}.layers.0."
        norms = [f"{side}.layer_norm", f"{at}self_attn_layer_norm", f"{at}final_layer_norm"]
        mixers = ["self_attn"]
        if side == "decoder":
            norms.append(f"{at}encoder_attn_layer_norm")
            mixers.append("encoder_attn")
        for name in norms:
            shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
        for mixer in mixers:
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes[f"{at}{mixer}.{part}.weight"] = (WIDTH, WIDTH)
                if part != "k_proj":
                    shapes[f"{at}{mixer}.{part}.bias"] = (WIDTH,)
        for part, rows, cols in (("fc1", INNER, WIDTH), ("fc2", WIDTH, INNER)):
            shapes |= {f"{at}{part}.weight": (rows, cols), f"{at}{part}.bias": (rows,)}
    random = np.random.default_rng(seed)
    return {f"model.{name}": random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def variables(tensors: Arrays) -> Arrays:
    """The same as CTranslate2 calls and fuses them."""
    found: Arrays = {}

    def norm(own: str, theirs: str) -> None:
        found[f"{own}/gamma"], found[f"{own}/beta"] = tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"]

    def linear(own: str, theirs: str, *parts: str) -> None:
        found[f"{own}/weight"] = np.concatenate([tensors[f"{theirs}{part}.weight"] for part in parts])
        biases = [tensors.get(f"{theirs}{part}.bias", np.zeros(WIDTH, np.float32)) for part in parts]
        found[f"{own}/bias"] = np.concatenate(biases)

    for side in ("encoder", "decoder"):
        own, theirs = f"{side}/layer_0/", f"model.{side}.layers.0."
        found[f"{side}/position_encodings/encodings"] = tensors[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        norm(f"{own}self_attention/layer_norm", f"{theirs}self_attn_layer_norm")
        norm(f"{own}ffn/layer_norm", f"{theirs}final_layer_norm")
        linear(f"{own}self_attention/linear_0", f"{theirs}self_attn.", "q_proj", "k_proj", "v_proj")
        linear(f"{own}self_attention/linear_1", f"{theirs}self_attn.", "out_proj")
        linear(f"{own}ffn/linear_0", theirs, "fc1")
        linear(f"{own}ffn/linear_1", theirs, "fc2")
    at = "decoder/layer_0/attention/"
    norm(f"{at}layer_norm", "model.decoder.layers.0.encoder_attn_layer_norm")
    linear(f"{at}linear_0", "model.decoder.layers.0.encoder_attn.", "q_proj")
    linear(f"{at}linear_1", "model.decoder.layers.0.encoder_attn.", "k_proj", "v_proj")
    linear(f"{at}linear_2", "model.decoder.layers.0.encoder_attn.", "out_proj")
    for part in ("weight", "bias"):
        for conv in ("conv1", "conv2"):
            found[f"encoder/{conv}/{part}"] = tensors[f"model.encoder.{conv}.{part}"]
    found["decoder/embeddings/weight"] = tensors["model.decoder.embed_tokens.weight"]
    return found


def stored(found: Arrays, kind: str) -> dict[str, tuple[int, NDArray[Any]]]:
    """Variables with the numbers of their types, as a converter stores them for a kind of quantization."""
    plain = {"float16": (4, np.float16), "int8_float16": (4, np.float16)}.get(kind, (0, np.float32))
    made: dict[str, tuple[int, NDArray[Any]]] = {}
    for name, values in found.items():
        matrix = name.endswith("/weight")
        if kind == "bfloat16":
            made[name] = 5, (values.view(np.uint32) >> 16).astype(np.uint16)
        elif kind == "int16" and matrix:
            scale = np.float32(1024 / np.abs(values).max())
            made |= {name: (2, np.rint(values * scale).astype(np.int16)), f"{name}_scale": (0, np.array(scale))}
        elif kind.startswith("int8") and matrix:
            scales = 127 / np.abs(values.reshape(len(values), -1)).max(1)
            codes = np.rint(values * scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
            made |= {name: (1, codes), f"{name}_scale": (0, scales.astype(np.float32))}
        else:
            made[name] = plain[0], values.astype(plain[1])
    return made


def text(letters: str) -> bytes:
    return struct.pack("<H", len(letters) + 1) + letters.encode() + b"\0"


def model_bin(
    made: dict[str, tuple[int, NDArray[Any]]],
    scalars: dict[str, tuple[int, bytes]] | None = None,
    aliases: dict[str, str] | None = None,
    spec: str = "WhisperSpec",
    version: int = 6,
) -> bytes:
    scalars = SCALARS if scalars is None else scalars
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"} if aliases is None else aliases
    parts = [struct.pack("<I", version), text(spec), struct.pack("<II", 3, len(made) + len(scalars))]
    for name, (kind, value) in scalars.items():
        parts += [text(name), struct.pack("<BBI", 0, kind, len(value)), value]
    for name, (kind, values) in made.items():
        shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        parts += [text(name), shape, struct.pack("<BI", kind, values.nbytes), values.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(other) + text(name) for other, name in aliases.items()]
    return b"".join(parts)


def save(folder: Path, data: bytes, **config: Any) -> Path:
    """Writes a folder."""
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(data)
    said = {"alignment_heads": [[0, 1]], "lang_ids": [], "suppress_ids": [1, 2], "suppress_ids_begin": None, **config}
    (folder / "config.json").write_text(json.dumps(said))
    save_tokenizer(folder)
    return folder
