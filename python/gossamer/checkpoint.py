"""Checkpoints as they come: Hugging Face folders (one file or sharded) and GGUF files behind one interface."""

from __future__ import annotations

import json
import logging
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arch
from .bitmask_tensors import BitmaskTensor, find_bitmask_tensors
from .errors import GossamerError
from .files import refuse_pointer
from .folders import new_folder
from .low_rank import LowRank, read_low_rank
from .safetensors_io import SafetensorsFile, SafetensorsWriter, round_to
from .tokenizer import Tokenizer, read_json

_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_TYPE_NAMES = {own: name for name, own in _TYPES.items()}
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt", "model.bin")
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)
# Buffers that follow from the config, which older programs stored: rotary tables, and masks [1, 1, n, n].
_BUFFER = re.compile(r"rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|(^|\.)position_ids$")
_MASK = re.compile(r"(attn|attention)\.(masked_)?bias$")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPRESSION_KEYS = ("quantization_config", "compression_config", "sparsity_config")
# What the tensors of compressed checkpoints are called, by the last part of their names.
_COMPRESSED = {
    "compressed": "compressed-tensors sparse",
    "weight_packed": "compressed-tensors quantized",
    "weight_scale": "compressed-tensors quantized",
    "qweight": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale_inv": "FP8",
    "weight_blocks": "MXFP4",
    "layout_numbers": "gossamer.torch",
}


class Checkpoint(ABC):
    """An open checkpoint: its config, and tensors that are read when asked for, under Hugging Face names.

    Attributes:
        path: The folder or file.
        config: Content of config.json, or its like built from the keys of a GGUF file.
        low_rank: Low-rank branches by the name of the weight that each goes with.
        notes: Where its files contradict each other, and what was made of it.
    """

    path: Path
    config: dict[str, Any]
    low_rank: Mapping[str, LowRank] = {}
    notes: tuple[str, ...] = ()

    @abstractmethod
    def names(self) -> list[str]:
        """Returns the names of all tensors, in file order."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape; weights are [outputs, inputs]."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """Returns a tensor's stored type: "f32", "f16", "bf16", or another type's name as the file calls it."""

    @abstractmethod
    def tensor(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor, dequantized.

        Raises:
            GossamerError: there is no such tensor, or its type is not supported.
        """

    def finite(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor as `tensor` does.

        Raises:
            GossamerError: as there, or a value is NaN or infinite.
        """
        values = self.tensor(name)
        if not np.isfinite(values).all():
            raise GossamerError(f"{self.path}: tensor {name} has NaN or infinite values")
        return values

    def add_zeros(self, name: str, length: int) -> None:
        """Adds a vector of zeros, as if the file had it."""
        raise NotImplementedError

    def same(self, first: str, second: str) -> bool:
        """Returns whether two tensors have the same values."""
        return np.array_equal(self.tensor(first), self.tensor(second))

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Opens the tokenizer.

        Raises:
            GossamerError: it is missing, not valid, or not supported.
        """

    @abstractmethod
    def copy_companions(self, dst: Path) -> None:
        """Writes what belongs to the model beside config and weights: tokenizer files, generation_config.json."""


class _Zeros:
    """Zeros, with what is asked of a tensor that is computed rather than stored."""

    dtype = "F32"

    def __init__(self, length: int) -> None:
        self.shape = (length,)

    def float32(self) -> NDArray[np.float32]:
        return np.zeros(self.shape, np.float32)


class FolderCheckpoint(Checkpoint):
    """A Hugging Face checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config = read_json(folder / "config.json")
        self._files: dict[str, SafetensorsFile] = {}  # by tensor
        if (folder / _FILE).is_file():
            file = SafetensorsFile(folder / _FILE)
            self._files = dict.fromkeys(file.tensors, file)
        elif (folder / _INDEX).is_file():
            self._open_shards(folder)
        else:
            for name in _PICKLES:
                if (folder / name).exists():
                    refuse_pointer(folder / name)
                    raise GossamerError(
                        f"{folder / name}: pickled weights can run any code and are not read; use safetensors"
                    )
            raise GossamerError(f"{folder}: no {_FILE} and no {_INDEX}")
        sparse, parts = find_bitmask_tensors(self._files)
        self._computed: dict[str, BitmaskTensor | _Zeros] = dict(sparse)
        self._names = [name for name in self._files if name not in parts]
        self.low_rank = read_low_rank(folder)

    def _open_shards(self, folder: Path) -> None:
        index = folder / _INDEX
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise GossamerError(f"{index}: weight_map is missing or empty")
        shards: dict[str, SafetensorsFile] = {}
        for name, shard in places.items():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise GossamerError(f"{index}: tensor {name} lies in {shard!r:.80}, which is no file of this folder")
            if shard not in shards:
                if not (folder / shard).is_file():
                    raise GossamerError(f"{folder / shard}: missing; {_INDEX} says that tensor {name} is in it")
                shards[shard] = SafetensorsFile(folder / shard)
            if name not in shards[shard].tensors:
                raise GossamerError(f"{folder / shard}: tensor {name} is missing; {_INDEX} says that it is there")
            self._files[name] = shards[shard]
        for file in shards.values():  # what the index does not list is stored all the same
            self._files = dict.fromkeys(file.tensors, file) | self._files

    def names(self) -> list[str]:  # noqa: D102 - as in the base class, as are those below
        return [*self._names, *self._computed]

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        return self._computed[name].shape if name in self._computed else self._file(name).info(name).shape

    def dtype(self, name: str) -> str:  # noqa: D102
        stored = self._computed[name].dtype if name in self._computed else self._file(name).info(name).dtype
        return _TYPES.get(stored, stored)

    def tensor(self, name: str) -> NDArray[np.float32]:  # noqa: D102
        return self._computed[name].float32() if name in self._computed else self._file(name).float32(name)

    def add_zeros(self, name: str, length: int) -> None:  # noqa: D102
        self._computed[name] = _Zeros(length)

    def same(self, first: str, second: str) -> bool:  # noqa: D102
        if self.dtype(first) == self.dtype(second) and {first, second}.isdisjoint(self._computed):
            return np.array_equal(self._file(first).raw(first), self._file(second).raw(second))  # copies nothing
        return super().same(first, second)

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._files[name]
        except KeyError:
            raise GossamerError(f"{self.path}: tensor {name} is missing") from None

    def tokenizer(self) -> Tokenizer:  # noqa: D102
        return Tokenizer.from_folder(self.path)

    def copy_companions(self, dst: Path) -> None:  # noqa: D102
        for name in _COMPANIONS:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, dst / name)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint and checks every tensor that the model needs against its config; reads no values yet.

    Args:
        path: A Hugging Face checkpoint folder or a GGUF file.

    Raises:
        GossamerError: it is not a checkpoint, a file of it is missing or not valid, the model's family is not
            supported, or a tensor is missing or contradicts the config. The line names file and tensor.
    """
    path = Path(path)
    checkpoint: Checkpoint
    if path.is_dir():
        if (path / "gossamer.json").is_file():
            raise GossamerError(f"{path}: is packed already; give the checkpoint that it was made from")
        if not (path / "config.json").is_file():
            raise GossamerError(f"{path}: no config.json, so this is no checkpoint folder")
        checkpoint = FolderCheckpoint(path)
        source = path / "config.json"
        if (path / "adapter_config.json").is_file():
            checkpoint.notes += (f"{path}: the adapter that lies beside the model is left out",)
    elif path.is_file():
        if path.suffix == ".safetensors":
            raise GossamerError(f"{path}: give the folder that holds this file and its config.json")
        from .gguf_file import GgufCheckpoint

        checkpoint = GgufCheckpoint(path)
        source = path
    else:
        raise GossamerError(f"{path}: No such file or directory")
    _refuse_compressed(checkpoint)
    try:
        family = arch.family(checkpoint.config)
        if unread := family.unread(checkpoint.config):
            checkpoint.notes += (f"{source}: keys that are not known are left out: {', '.join(unread)}",)
        _untie(checkpoint, source)
        _announce_biases(checkpoint, family.biases(checkpoint.config))
        needed = family.tensors(checkpoint.config)
    except GossamerError as error:
        raise GossamerError(f"{source}: {error}") from None
    present = set(checkpoint.names())
    for name, expected in needed.values():
        if name not in present:
            raise GossamerError(f"{path}: tensor {name} is missing")
        if (shape := checkpoint.shape(name)) != expected:
            raise GossamerError(f"{path}: tensor {name} has shape {list(shape)}, the config asks for {list(expected)}")
    try:
        family.decoder_config(checkpoint.config)  # of these sizes: tables follow from some, and cost what they say
    except GossamerError as error:
        raise GossamerError(f"{source}: {error}") from None
    _refuse_unused(checkpoint, present - {name for name, _ in needed.values()})
    shapes = {stored: shape for name, (stored, shape) in needed.items() if name.startswith("layers.") and shape[1:]}
    for name, branch in checkpoint.low_rank.items():
        if name not in shapes:
            raise GossamerError(f"{path}: no linear of a block goes with the low-rank branch of {name}")
        if (shape := (len(branch.u), branch.v.shape[1])) != shapes[name]:
            raise GossamerError(f"{path}: the low-rank branch of {name} is {list(shape)}, not {list(shapes[name])}")
    for note in checkpoint.notes:
        logging.getLogger("gossamer").warning("%s", note)
    return checkpoint


def _untie(checkpoint: Checkpoint, source: Path) -> None:
    """Takes a head of its own where one is stored, whatever the config says of it, as `transformers` does."""
    if checkpoint.config.get("tie_word_embeddings") is not True or not {_EMBEDDING, _HEAD} <= set(checkpoint.names()):
        return
    if not checkpoint.same(_EMBEDDING, _HEAD):
        checkpoint.config["tie_word_embeddings"] = False
        checkpoint.notes += (
            f"{source}: tie_word_embeddings is true, and {_HEAD} is stored with values of its own: those are used",
        )


def _announce_biases(checkpoint: Checkpoint, biases: dict[str, arch.Tensors]) -> None:
    """Takes biases that are stored though the config does not announce them; where some are missing they are zero."""
    present = set(checkpoint.names())
    for key, tensors in biases.items():
        stored = [name for name, _ in tensors.values() if name in present]
        if not stored or checkpoint.config.get(key) is True:
            continue
        checkpoint.config[key] = True
        for name, shape in tensors.values():
            if name not in present:
                checkpoint.add_zeros(name, shape[0])
        checkpoint.notes += (
            f"{checkpoint.path}: the config does not announce {stored[0]} ({len(stored)} such biases): they are used",
        )


def _refuse_unused(checkpoint: Checkpoint, names: set[str]) -> None:
    """Refuses a tensor that the model has no use for, unless it is a buffer, or the embedding once more."""
    for name in sorted(names):
        mask = _MASK.search(name) and len(checkpoint.shape(name)) in (0, 4)
        again = name == _HEAD and checkpoint.config.get("tie_word_embeddings")
        if not (mask or again or _BUFFER.search(name)):
            raise GossamerError(f"{checkpoint.path}: tensor {name} has no place in the model that the config describes")


def refuse_low_rank(checkpoint: Checkpoint, what: str) -> None:
    """Raises `GossamerError` where a checkpoint has low-rank branches, for what would lose them."""
    if checkpoint.low_rank:
        raise GossamerError(f"{checkpoint.path}: a model with low-rank branches cannot be {what}")


def refuse_unwritable(checkpoint: Checkpoint) -> None:
    """Raises `GossamerError` where a folder has a tensor that `write_checkpoint` could not write again."""
    for name in checkpoint.names() if isinstance(checkpoint, FolderCheckpoint) else ():
        if (dtype := checkpoint.dtype(name)) not in ("f32", "f16", "bf16"):
            raise GossamerError(f"{checkpoint.path}: tensor {name} has type {dtype}; f32, f16 and bf16 are supported")


def _refuse_compressed(checkpoint: Checkpoint) -> None:
    """Tells compressed checkpoints by the tensors that are there: configs claim what they like."""
    for name in checkpoint.names():
        kind = _COMPRESSED.get(name.rpartition(".")[2])
        if kind:
            raise GossamerError(f"{checkpoint.path}: tensor {name}: {kind} checkpoints are not supported")


def write_checkpoint(
    dst: str | Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, NDArray[np.float32], str]],
    source: Checkpoint,
) -> None:
    """Writes an ordinary Hugging Face checkpoint folder, or nothing.

    Args:
        dst: Folder to make; must not exist, or be empty.
        config: Content of config.json; what it says of a compression is left out, since nothing is compressed here.
        tensors: Name, values and stored type ("f32", "f16", "bf16") of tensors of `source`; taken one at a time.
        source: Where tokenizer files and the like come from.

    Raises:
        GossamerError: `dst` is in use, or cannot be written.
    """
    folder = Path(dst)
    with new_folder(folder) as part:
        plain = {key: value for key, value in config.items() if key not in _COMPRESSION_KEYS}
        (part / "config.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        source.copy_companions(part)
        # Most readers take each tensor of the file for a weight, so fillers come only where a type needs them.
        with SafetensorsWriter(part / _FILE, source.names(), alignment=4, metadata={"format": "pt"}) as writer:
            for name, values, dtype in tensors:
                writer.add(name, round_to(values, dtype), _TYPE_NAMES[dtype])
