"""GGUF files of the tiny checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tiny import CHAT_TEMPLATE, EOS_ID, tiny_config, tiny_tensors, tiny_tokenizer

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def stored_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{BLOCK[part]}.{kind}"


def permuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The order of rows that llama.cpp's rotary embedding wants: the two halves of a head interleaved."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def add_tokenizer(
    writer: gguf.GGUFWriter,
    pre: str | None = "gpt-2",
    texts: Mapping[int, str] = MappingProxyType({}),
    types: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """The tokenizer of the tiny checkpoints."""
    backend = tiny_tokenizer()
    count = backend.get_vocab_size()
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([texts.get(token, backend.id_to_token(token)) for token in range(count)])
    writer.add_token_types([types.get(token, 3 if token < 3 else 1) for token in range(count)])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]])


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, NDArray[np.float32]] | None = None,
    pre: str | None = "gpt-2",
    texts: dict[int, str] | None = None,
    types: dict[int, int] | None = None,
    only: Callable[[str], bool] = lambda _: True,
    endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
    **overrides: Any,
) -> Path:
    """A GGUF file of the checkpoint that `tiny_llama` writes with the same overrides; `keys` of None are left out.

    Tokens may have other `texts` and `types`; of the tensors `only` chooses.
    """
    config = tiny_config(**overrides)
    writer = gguf.GGUFWriter(path, architecture, endianess=endian)
    numbers: dict[str, Any] = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_theta"],
        **(keys or {}),
    }
    for key, value in numbers.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    add_tokenizer(writer, pre, texts or {}, types or {})
    writer.add_bos_token_id(0)
    if "tokenizer.ggml.eos_token_id" not in (keys or {}):
        writer.add_eos_token_id(EOS_ID)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, values in tiny_tensors(config).items():
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                values = permuted(values, config[heads])  # noqa: PLW2901
        if not only(stored_name(name)):
            continue
        one = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
        writer.add_tensor(stored_name(name), gguf.quants.quantize(values, one), raw_dtype=one)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
