"""GGUF files, read through the `gguf` package, under Hugging Face names."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..arch.sources import Source
from ..errors import GossamerError
from ..text.tokenizer import Tokenizer
from .base import Checkpoint
from .gguf_config import ROPE_FACTORS, find, read_config
from .gguf_families import Architecture
from .gguf_names import sources
from .gguf_reader import read as read_file
from .gguf_tokenizer import rebuild

_BUFFER = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")  # frequencies without scaling, in files of 2023
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_PARTS = 999


class GgufCheckpoint(Checkpoint):
    """A GGUF file: tensors of a description, put together as the family's checkpoints have them."""

    def __init__(self, path: Path, content: tuple[dict[str, Any], dict[str, Any]] | None = None) -> None:
        """Reads the keys and the list of tensors.

        Args:
            path: The file.
            content: Both of one that is not written yet, tensors by name as the package describes them.

        Raises:
            GossamerError: the file is not a valid GGUF file, or holds a model of another family.
        """
        self.path = path
        self._keys, stored = content or _read(path)
        kind, architecture = (self._keys.get(f"general.{name}") for name in ("type", "architecture"))
        if kind not in (None, "model"):
            raise GossamerError(f"{path}: holds no model: its general.type is {kind!r:.80}")
        family = find(path, architecture)
        factors = {name: self._read(stored.pop(name)).reshape(-1).tolist() for name in ROPE_FACTORS if name in stored}
        self._tensors = {name: tensor for name, tensor in stored.items() if not _BUFFER.fullmatch(name)}
        shapes = {name: _shape(tensor) for name, tensor in self._tensors.items()}
        embedding = shapes.get("token_embd.weight")
        if embedding is None or len(embedding) != 2:
            raise GossamerError(f"{path}: tensor token_embd.weight is missing or no matrix")
        self.config, heads = read_config(path, str(architecture), family, self._keys, shapes, embedding[0], factors)
        self._zeros: dict[str, int] = {}
        self._place(shapes, family, heads)

    def _place(self, shapes: dict[str, tuple[int, ...]], architecture: Architecture, heads: dict[str, int]) -> None:
        """Finds out what of the family's tensors the file has, and where."""
        try:
            family = arch.family(self.config)
            every = family.sources({**self.config, "tie_word_embeddings": False}) | family.sources(self.config)
            for more in family.biases(self.config).values():
                every |= more
        except GossamerError as error:
            raise GossamerError(f"{self.path}: {error}") from None
        self._own = sources({name: source.outcome for name, source in every.items()}, shapes, architecture, heads)
        self._held = {
            tensor: held for tensor, held in arch.stored(every).items() if all(name in self._own for name in held)
        }
        taken = {self._own[name].tensor for held in self._held.values() for name in held}
        self._left = [name for name in shapes if name not in taken]

    @property
    def places(self) -> arch.Sources:
        """Where those of the family's canonical tensors lie in the file that it has."""
        return self._own

    def names(self) -> list[str]:  # noqa: D102 - as in the base class, as are those below
        return [*self._held, *self._left, *self._zeros]

    def add_zeros(self, name: str, length: int) -> None:  # noqa: D102
        self._zeros[name] = length

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        if name in self._zeros:
            return (self._zeros[name],)
        for own, source in self._pieces(name).items():
            stored = self._own[own]
            if (shape := _shape(self._tensors[stored.tensor])) != stored.shape:
                raise GossamerError(
                    f"{self.path}: tensor {stored.tensor} has shape {list(shape)}, the keys ask for "
                    f"{list(stored.shape)}"
                )
            return source.shape
        return _shape(self._tensor(name))

    def dtype(self, name: str) -> str:  # noqa: D102
        if name in self._zeros:
            return "f32"
        holders = [self._own[own].tensor for own in self._pieces(name)] or [name]
        kinds: set[str] = {self._tensor(holder).tensor_type.name for holder in holders}
        kind = min(kinds - {"F32"}, default="F32")  # of several, one that is none of floats wins
        return kind.lower() if kind in ("F32", "F16", "BF16") else kind

    def form(self, name: str) -> str | None:  # noqa: D102
        kind = self.dtype(name)
        return None if kind in ("f32", "f16", "bf16") else kind

    def tensor(self, name: str) -> NDArray[np.float32]:  # noqa: D102
        if name in self._zeros:
            return np.zeros(self._zeros[name], np.float32)
        pieces = self._pieces(name)
        if not pieces:
            return self._read(self._tensor(name))
        whole: NDArray[np.float32] | None = None
        for own, source in pieces.items():
            values = self._canonical(own)
            if source.whole:
                return values
            whole = np.zeros(source.shape, np.float32) if whole is None else whole
            source.write(whole, values)
        assert whole is not None
        return whole

    def read(self, source: Source, *, finite: bool = False) -> NDArray[np.float32]:  # noqa: D102
        # What the family keeps in one tensor lies apart here: the piece alone is read.
        own = next((name for name, piece in self._pieces(source.tensor).items() if piece == source), None)
        if own is None:
            return super().read(source, finite=finite)
        values = self._canonical(own)
        if finite:
            self._refuse_infinite(source.tensor, values)
        return values

    def _pieces(self, name: str) -> arch.Sources:
        """The canonical tensors that lie in one of the family's, by name; none for a tensor of the file itself."""
        return self._held.get(name, {})

    def _canonical(self, name: str) -> NDArray[np.float32]:
        source = self._own[name]
        tensor = self._tensor(source.tensor)
        if source.index is None:
            return source.read(self._read(tensor))
        return replace(source, shape=source.shape[1:], index=None).read(self._read(tensor, source.index))

    def _tensor(self, name: str) -> Any:
        try:
            return self._tensors[name]
        except KeyError:
            raise GossamerError(f"{self.path}: tensor {name} is missing") from None

    def _read(self, tensor: Any, index: int | None = None) -> NDArray[np.float32]:
        """The values of a tensor, or of one of a stack."""
        from gguf import quants

        try:
            data = tensor.data if index is None else tensor.data[index]
            values = quants.dequantize(data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise GossamerError(
                f"{self.path}: tensor {tensor.name} is of type {kind}, which is not supported"
            ) from None
        shape = _shape(tensor)
        return np.ascontiguousarray(values, np.float32).reshape(shape if index is None else shape[1:])

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


def _shape(tensor: Any) -> tuple[int, ...]:
    """Outputs first; the file has inputs first, and a matrix of one row without its row."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return (1, *shape) if tensor.name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1 else shape
