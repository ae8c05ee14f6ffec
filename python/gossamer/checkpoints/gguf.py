"""GGUF files of the Llama family, read through the `gguf` package, under Hugging Face names."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch.sources import Source
from ..errors import GossamerError
from ..text.tokenizer import Tokenizer
from .base import Checkpoint
from .gguf_config import read_config
from .gguf_reader import read as read_file
from .gguf_tokenizer import rebuild

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BUFFER = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")  # frequencies without scaling, in files of 2023
_ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies: Llama 3's scaling, evaluated
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_PARTS = 999


class GgufCheckpoint(Checkpoint):
    """A GGUF file whose architecture is "llama"."""

    def __init__(self, path: Path) -> None:
        """Reads the keys and the list of tensors.

        Raises:
            GossamerError: the file is not a valid GGUF file, or holds a model of another family.
        """
        self.path = path
        self._keys, stored = _read(path)
        kind, architecture = (self._keys.get(f"general.{name}") for name in ("type", "architecture"))
        if kind not in (None, "model"):
            raise GossamerError(f"{path}: holds no model: its general.type is {kind!r:.80}")
        if architecture != "llama":
            raise GossamerError(f"{path}: architecture {architecture!r:.80} is not supported in GGUF files; only llama")
        factors = stored.pop(_ROPE_FACTORS, None)
        self._tensors = {
            _checkpoint_name(path, name): tensor for name, tensor in stored.items() if not _BUFFER.fullmatch(name)
        }
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise GossamerError(f"{path}: tensor token_embd.weight is missing or no matrix")
        self.config = read_config(
            path,
            self._keys,
            vocab=int(embedding.shape[1]),
            tied="lm_head.weight" not in self._tensors,
            factors=None if factors is None else self._read(factors).reshape(-1).tolist(),
        )
        self._zeros: dict[str, int] = {}

    def names(self) -> list[str]:  # noqa: D102 - as in the base class, as are those below
        return [*self._tensors, *self._zeros]

    def add_zeros(self, name: str, length: int) -> None:  # noqa: D102
        self._zeros[name] = length

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        if name in self._zeros:
            return (self._zeros[name],)
        return tuple(int(size) for size in reversed(self._tensor(name).shape))  # the file has inputs first

    def dtype(self, name: str) -> str:  # noqa: D102
        if name in self._zeros:
            return "f32"
        kind: str = self._tensor(name).tensor_type.name
        return kind.lower() if kind in ("F32", "F16", "BF16") else kind

    def tensor(self, name: str) -> NDArray[np.float32]:  # noqa: D102
        if name in self._zeros:
            return np.zeros(self._zeros[name], np.float32)
        values = self._read(self._tensor(name))
        part = name.rpartition(".")[0].rpartition(".")[2]
        if part in ("q_proj", "k_proj"):
            heads = self.config["num_attention_heads"]
            heads = heads if part == "q_proj" else self.config.get("num_key_value_heads", heads)
            values = Source(name, values.shape, heads=heads).read(values)
        return values

    def _tensor(self, name: str) -> Any:
        try:
            return self._tensors[name]
        except KeyError:
            raise GossamerError(f"{self.path}: tensor {name} is missing") from None

    def _read(self, tensor: Any) -> NDArray[np.float32]:
        from gguf import quants

        try:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise GossamerError(
                f"{self.path}: tensor {tensor.name} is of type {kind}, which is not supported"
            ) from None
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return np.ascontiguousarray(values, np.float32).reshape(shape)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return rebuild(self.path, self._keys)

    def tokenizer(self) -> Tokenizer:  # noqa: D102
        return self._tokenizer

    def copy_companions(self, dst: Path) -> None:  # noqa: D102
        self._tokenizer.save(dst)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys and the tensors, by their names, of a file or of all parts of a split one."""
    keys, tensors = read_file(path)
    count = keys.get("split.count") or 1
    if not isinstance(count, int) or not 1 <= count <= _MOST_PARTS:
        raise GossamerError(f"{path}: split.count must be from 1 to {_MOST_PARTS}, got {count!r:.80}")
    if count == 1:
        return keys, tensors
    names = _SPLIT.fullmatch(path.name)
    if names is None or int(names["count"]) != count:
        raise GossamerError(
            f"{path}: is one part of a model split into {count}, and its name has to say which, as in "
            f"NAME-00001-of-{count:05}.gguf"
        )
    parts = [path.with_name(f"{names['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    tensors, expected = {}, 0
    for number, part in enumerate(parts):
        if not part.is_file():
            raise GossamerError(f"{path}: is one part of a model split into {count}, and {part.name} is missing")
        own, more = read_file(part)
        if (own.get("split.no"), own.get("split.count")) != (number, count):
            raise GossamerError(f"{part}: does not say of itself that it is part {number + 1} of {count}")
        if not number:
            keys, expected = own, own.get("split.tensors.count", 0)
        if twice := tensors.keys() & more.keys():
            raise GossamerError(f"{part}: tensor {min(twice)} is in another part, too")
        tensors |= more
    if expected and expected != len(tensors):
        raise GossamerError(f"{path}: all parts together have {len(tensors)} tensors, not the {expected} they should")
    return keys, tensors


def _checkpoint_name(path: Path, name: str) -> str:
    """The Hugging Face name of a tensor of the file."""
    stem, _, kind = name.rpartition(".")
    own = _TOP.get(stem)
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2) if stem.count(".") == 2 else ("", "", "")
        own = f"model.layers.{layer}.{_BLOCK[part]}" if layer.isdecimal() and part in _BLOCK else None
    if own is None or kind not in ("weight", "bias"):
        raise GossamerError(f"{path}: tensor {name} has no place in the Llama family")
    return f"{own}.{kind}"
