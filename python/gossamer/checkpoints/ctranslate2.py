"""Folders of CTranslate2, as faster-whisper reads them: a Whisper under the names and keys of `transformers`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..files import read_json
from ..text.tokenizer import Tokenizer
from .codecs import StoredTensor, Tensor, Tensors
from .codecs.quantized import Product, QuantizedTensor
from .ctranslate2_file import FILE, CTranslate2File
from .folder import FolderCheckpoint

# As CTranslate2's config.json calls what a model says of generation -> as generation_config.json does.
_GENERATION = {
    "alignment_heads": "alignment_heads",
    "suppress_ids": "suppress_tokens",
    "suppress_ids_begin": "begin_suppress_tokens",
}
_IMPLIED = {"lang_ids"}  # the tokenizer has them by name
# Mathematics that a Whisper has: other values are refused. 3 is the GELU that is computed exactly.
_FIXED = {
    "activation": 3,
    "alibi": 0,
    "alibi_use_positive_positions": 0,
    "pre_norm": 1,
    "scale_alibi": 0,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
}
_SIZES = {"num_heads"}
_DEFAULTS = {"alignment_heads", "alignment_layer"}  # of models that name no heads, which Whisper's config does
_HEAD = ("decoder/projection/weight", "decoder/projection/weight_scale")
_ALL = slice(None)
_FUSED_BIAS = ("self_attention/linear_0/bias", "/attention/linear_1/bias")


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder is one of CTranslate2: it has model.bin beside a config that tells of no model type."""
    if not (folder / FILE).is_file() or not (folder / "config.json").is_file():
        return False
    return "model_type" not in read_json(folder / "config.json")


class CTranslate2Checkpoint(FolderCheckpoint):
    """A folder that a converter of CTranslate2 wrote."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._file = CTranslate2File(folder / FILE)
        if self._file.spec != "WhisperSpec":
            raise GossamerError(f"{folder / FILE}: {self._file.spec} of CTranslate2 is not read; WhisperSpec is")
        stored = read_json(folder / "config.json")
        if unknown := sorted(set(stored) - set(_GENERATION) - _IMPLIED):
            raise GossamerError(f"{folder / 'config.json'}: {unknown[0]} is not known")
        self._generation = {name: stored[key] for key, name in _GENERATION.items() if stored.get(key)}
        self._left = set(self._file.tensors)
        self.config = self._sizes()
        self._tensors = Tensors((name, self._take(own, rows)) for name, own, rows in self._names())
        self._left -= {name for name in _HEAD if self._same(name, name.replace("projection", "embeddings"))}
        if self._left:
            raise GossamerError(f"{folder / FILE}: {min(self._left)} has no place in a Whisper")

    def _sizes(self) -> dict[str, Any]:
        """The config of a Whisper with these tensors."""
        config: dict[str, Any] = {
            "model_type": "whisper",
            "activation_function": "gelu",
            "scale_embedding": False,
            "tie_word_embeddings": True,
            "vocab_size": self._size("decoder/embeddings/weight", 0),
            "d_model": self._size("decoder/embeddings/weight", 1),
            "num_mel_bins": self._size("encoder/conv1/weight", 1),
            "max_source_positions": self._size("encoder/position_encodings/encodings", 0),
            "max_target_positions": self._size("decoder/position_encodings/encodings", 0),
        }
        for side in ("encoder", "decoder"):
            layers = {name.split("/")[1] for name in self._file.tensors if name.startswith(f"{side}/layer_")}
            config[f"{side}_layers"] = len(layers - {"layer_norm"})
            config[f"{side}_ffn_dim"] = self._size(f"{side}/layer_0/ffn/linear_0/weight", 0)
            config[f"{side}_attention_heads"] = self._file.scalars.get(f"{side}/num_heads")
        for name, value in self._file.scalars.items():
            own = name.rpartition("/")[2]
            if own in _FIXED and value != _FIXED[own]:
                raise GossamerError(f"{self._file.path}: {name} is {value}; a Whisper has {_FIXED[own]}")
            if own not in _SIZES | _DEFAULTS | set(_FIXED) and not own.endswith("_scale"):
                raise GossamerError(f"{self._file.path}: {name} is not known")
        return config

    def _size(self, name: str, axis: int) -> int:
        shape = self._file.tensors[name].shape if name in self._file.tensors else ()
        if len(shape) <= axis:
            raise GossamerError(f"{self._file.path}: {name} is missing, or no matrix")
        return shape[axis]

    def _names(self) -> Iterator[tuple[str, str, slice]]:
        """Names of `transformers`, and where each tensor lies: its name here, and its rows."""
        width = self.config["d_model"]
        yield "model.decoder.embed_tokens.weight", "decoder/embeddings/weight", _ALL
        for conv in ("conv1", "conv2"):
            for part in ("weight", "bias"):
                yield f"model.encoder.{conv}.{part}", f"encoder/{conv}/{part}", _ALL
        for side in ("encoder", "decoder"):
            yield f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings", _ALL
            yield from _norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
            for layer in range(self.config[f"{side}_layers"]):
                theirs, own = f"model.{side}.layers.{layer}.", f"{side}/layer_{layer}/"
                yield from _linears(f"{theirs}self_attn.", f"{own}self_attention/linear_0", ("q", "k", "v"), width)
                yield from _linear(f"{theirs}self_attn.out_proj", f"{own}self_attention/linear_1")
                yield from _norm(f"{theirs}self_attn_layer_norm", f"{own}self_attention/layer_norm")
                if side == "decoder":
                    yield from _linear(f"{theirs}encoder_attn.q_proj", f"{own}attention/linear_0")
                    yield from _linears(f"{theirs}encoder_attn.", f"{own}attention/linear_1", ("k", "v"), width)
                    yield from _linear(f"{theirs}encoder_attn.out_proj", f"{own}attention/linear_2")
                    yield from _norm(f"{theirs}encoder_attn_layer_norm", f"{own}attention/layer_norm")
                yield from _linear(f"{theirs}fc1", f"{own}ffn/linear_0")
                yield from _linear(f"{theirs}fc2", f"{own}ffn/linear_1")
                yield from _norm(f"{theirs}final_layer_norm", f"{own}ffn/layer_norm")

    def _take(self, own: str, rows: slice) -> Tensor:
        """A tensor; what a fused bias says of keys is not among them, since Whisper's have none."""
        if own not in self._file.tensors:
            raise GossamerError(f"{self._file.path}: {own} is missing")
        self._left -= {own, f"{own}_scale"}
        stored = StoredTensor(self._file, own)
        if own.endswith(_FUSED_BIAS):
            start = self.config["d_model"] if "self_attention" in own else 0
            if stored.float32()[start : start + self.config["d_model"]].any():
                raise stored.bad("has a bias of keys, which a Whisper has not")
        if stored.dtype in ("F32", "F16", "BF16"):
            return stored if rows == _ALL else _Rows(stored, rows)
        return _Scaled(stored, self._scales(stored), rows)

    def _scales(self, stored: StoredTensor) -> NDArray[np.float32]:
        """What the rows of a tensor of whole numbers were multiplied with: int8 has one for each, int16 one in all."""
        name = f"{stored.name}_scale"
        rows = stored.shape[0]
        if stored.dtype == "I16" and name in self._file.scalars:
            scales = np.full(rows, self._file.scalars[name], np.float32)
        elif stored.dtype == "I8" and name in self._file.tensors:
            scales = self._file.float32(name)
        else:
            raise stored.bad(f"is of type {stored.dtype}, and {name} is missing")
        if scales.shape != (rows,) or not (np.isfinite(scales) & (scales > 0)).all():
            raise stored.bad(f"has {rows} rows, and {name} is not as many finite numbers above 0")
        return scales

    def _same(self, name: str, other: str) -> bool:
        """Whether a variable is another one by a second name, or says the same once more."""
        tensors = self._file.tensors
        if name not in tensors or other not in tensors:
            return False
        return tensors[name] == tensors[other] or np.array_equal(self._file.raw(name), self._file.raw(other))

    def tokenizer(self) -> Tokenizer:  # noqa: D102 - as in the base class, as is the one below
        tokenizer = super().tokenizer()
        tokenizer.generation = tokenizer.generation | self._generation
        return tokenizer

    def copy_companions(self, dst: Path) -> None:  # noqa: D102
        super().copy_companions(dst)
        text = json.dumps(self._generation, indent=2)
        (dst / "generation_config.json").write_text(text + "\n", encoding="utf-8")


class _Rows(Tensor):
    """Some rows of a stored tensor."""

    def __init__(self, whole: StoredTensor, rows: slice) -> None:
        self.path, self.name, self.dtype = whole.path, whole.name, whole.dtype
        self.shape = (len(range(*rows.indices(whole.shape[0]))), *whole.shape[1:])
        self._whole, self._rows = whole, rows

    def raw(self) -> NDArray[Any]:
        return self._whole.raw()[self._rows]

    def float32(self) -> NDArray[np.float32]:
        return self._whole.float32()[self._rows]


class _Scaled(QuantizedTensor):
    """Some rows of whole numbers, and what each row was multiplied with."""

    def __init__(self, numbers: StoredTensor, scales: NDArray[np.float32], rows: slice) -> None:
        self.path, self.name, self.dtype = numbers.path, numbers.name, "int8" if numbers.dtype == "I8" else "F32"
        self._numbers, self._scales, self._rows = numbers, scales[rows], rows
        self.shape = (len(self._scales), *numbers.shape[1:])

    def product(self) -> Product:
        numbers = self._numbers.raw()[self._rows].reshape(len(self._scales), -1)
        return Product(numbers, (np.float32(1) / self._scales)[:, None], 0)

    def float32(self) -> NDArray[np.float32]:
        return self.product().floats().reshape(self.shape)


def _linear(theirs: str, own: str) -> Iterator[tuple[str, str, slice]]:
    for part in ("weight", "bias"):
        yield f"{theirs}.{part}", f"{own}/{part}", _ALL


def _linears(theirs: str, own: str, parts: tuple[str, ...], width: int) -> Iterator[tuple[str, str, slice]]:
    """Linears whose rows are stored one behind the other; those of keys have no bias."""
    for at, part in enumerate(parts):
        rows = slice(at * width, (at + 1) * width)
        yield f"{theirs}{part}_proj.weight", f"{own}/weight", rows
        if part != "k":
            yield f"{theirs}{part}_proj.bias", f"{own}/bias", rows


def _norm(theirs: str, own: str) -> Iterator[tuple[str, str, slice]]:
    yield f"{theirs}.weight", f"{own}/gamma", _ALL
    yield f"{theirs}.bias", f"{own}/beta", _ALL
