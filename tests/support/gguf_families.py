"""Tiny checkpoints of transformers as GGUF files, written as llama.cpp's converter writes them.

Names come from the table of the `gguf` package; what else a converter does to a family's tensors stands here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gguf_files import add_tokenizer

Array = NDArray[np.float32]
Config = dict[str, Any]
Change = Callable[[str, Array, Config], Iterator[tuple[str, Array]]]


def keep(name: str, values: Array, _: Config) -> Iterator[tuple[str, Array]]:
    """As it is."""
    yield name, values


def interleaved(name: str, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """Llama and its kin: the halves of each rotary pair side by side."""
    heads = config["num_attention_heads"]
    counts = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    for part, count in counts.items():
        if f".{part}." in name:
            values = values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    yield name, values


def turned(name: str, values: Array, _: Config) -> Iterator[tuple[str, Array]]:
    """GPT-2: matrices of blocks have outputs first."""
    yield name, values.T if values.ndim == 2 and ".h." in name else values


def apart(name: str, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """GPT-NeoX and BLOOM: the queries of all heads, then their keys, then their values."""
    if "query_key_value" in name:
        heads = config.get("num_attention_heads") or config["n_head"]
        values = values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    yield name, values


def shifted(name: str, values: Array, _: Config) -> Iterator[tuple[str, Array]]:
    """Gemma: norms' weights with the one that the model adds."""
    yield name, values + 1 if name.endswith("norm.weight") else values


def by_group(name: str, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """Falcon: of each key head its queries, the key and the value become all queries, all keys, all values."""
    if "query_key_value" in name:
        heads = config["num_attention_heads"]
        groups = config["num_kv_heads"] if config["new_decoder_architecture"] else 1 if config["multi_query"] else heads
        rows = values.reshape(groups, heads // groups + 2, -1, *values.shape[1:])
        parts = rows[:, :-2], rows[:, -2:-1], rows[:, -1:]
        values = np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    yield name, values


def turned_apart(name: str, values: Array, _: Config) -> Iterator[tuple[str, Array]]:
    """gpt-oss: gates and ups of the experts, which alternate, apart and with outputs first."""
    stem, bias = name.removesuffix("_bias"), name.endswith("_bias")
    end = ".bias" if bias else ".weight"
    if stem.endswith("gate_up_proj"):
        for at, own in enumerate(("gate_proj", "up_proj")):
            part = values[..., at::2]
            yield stem.replace("gate_up_proj", own) + end, part if bias else part.swapaxes(1, 2)
    elif stem.endswith("experts.down_proj"):
        yield stem + end, values if bias else values.swapaxes(1, 2)
    else:
        yield name + ".weight" * name.endswith("sinks"), values


def halved(name: str, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """Granite with experts: its gates and its ups, which lie one behind the other, apart."""
    if name.endswith("block_sparse_moe.input_linear.weight"):
        stem = name.replace("block_sparse_moe.input_linear", "mlp.experts.{}")
        for own, part in zip(("gate_proj", "up_proj"), np.split(values, 2, 1), strict=True):
            yield stem.format(own), part
    else:
        yield from interleaved(name, values, config)


CHANGES: dict[str, Change] = {
    **dict.fromkeys(("llama", "granite", "smollm3", "olmo", "mistral3"), interleaved),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), shifted),
    **dict.fromkeys(("gptneox", "bloom"), apart),
    "gpt2": turned,
    "granitemoe": halved,
    "falcon": by_group,
    "gpt-oss": turned_apart,
}


def stacked(tensors: dict[str, Array]) -> dict[str, Array]:
    """The experts of each layer as one tensor."""
    found: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    for name, values in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name)
        if match:
            stacks.setdefault(match[1] + match[3], {})[int(match[2])] = values
        else:
            found[name] = values[0] if name.endswith("shared_expert_gate.weight") else values
    return found | {name: np.stack([parts[index] for index in sorted(parts)]) for name, parts in stacks.items()}


def write(folder: Path, path: Path, architecture: str, keys: dict[str, Any]) -> Path:
    """Writes the checkpoint of a folder as a GGUF file with some keys, without their prefix."""
    config = json.loads((folder / "config.json").read_text())
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config["n_layers"]
    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, layers)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    add_tokenizer(writer)
    for stored, values in stacked(load_file(folder / "model.safetensors")).items():
        for name, changed in CHANGES.get(architecture, keep)(stored, values.astype(np.float32), config):
            tries = (name, name.removeprefix("transformer."))
            own = next(filter(None, (names.get_name(one, try_suffixes=(".weight", ".bias")) for one in tries)), None)
            assert own is not None, name
            writer.add_tensor(own, np.ascontiguousarray(changed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
