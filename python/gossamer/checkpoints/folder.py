"""Hugging Face folders: one file or several, with a config beside them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from ..files import read_json, refuse_pointer
from ..model_files import COMPANIONS
from ..safetensors_io import SafetensorsFile
from ..text.pooling import Pooling, pooling_files, read_pooling
from ..text.tokenizer import Tokenizer
from ..text.tokenizer_settings import TEMPLATE_FILES
from . import torch_bin
from .base import Checkpoint
from .branches import take_branches
from .codecs import File, StoredTensor, Tensor, Tensors, Zeros, decode
from .codes import Codes
from .low_rank import read_low_rank
from .torch_bin import TorchFile

FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
TYPE_NAMES = {own: name for name, own in _TYPES.items()}
_SHARD = re.compile(r"(pytorch_)?model-\d+-of-(\d+)")
_LEGACY = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_PICKLES = ("consolidated.00.pth", "model.pt", "model.bin")


def _same(name: str, one: File, other: File) -> bool:
    """Whether two files store the same for a tensor."""
    first, second = one.tensors[name], other.tensors[name]
    alike = (first.dtype, first.shape) == (second.dtype, second.shape)
    return alike and one.raw(name).tobytes() == other.raw(name).tobytes()


def _doubts(index: dict[str, Any], shards: dict[str, File], unlisted: list[str]) -> Iterator[str]:
    """Says what an index and its shards contradict each other in: a shard may be of another save or model.

    Args:
        index: Content of the index.
        shards: Those that it names.
        unlisted: Tensors of theirs that it does not name.
    """
    if unlisted:
        more = f" and {len(unlisted) - 1} more" if unlisted[1:] else ""
        yield f"does not list {unlisted[0]}{more}: they are used"
    counts = {match[2] for match in map(_SHARD.match, shards) if match}
    if len(counts) > 1:
        yield f"names shards of {' and of '.join(sorted(counts))}: they are of several saves"
    metadata = index.get("metadata")
    says = metadata.get("total_size") if isinstance(metadata, dict) else None
    tensors = [info for file in shards.values() for info in file.tensors.values()]
    stored = sum(info.stop - info.start for info in tensors)
    fair = type(says) in (int, float) and all(info.dtype != "BOOL" for info in tensors)  # older programs count bits
    if fair and says not in (stored, 0):
        yield f"its shards have {stored} bytes of tensors, and it says {says} (total_size): one may be of another save"


class FolderCheckpoint(Checkpoint):
    """A Hugging Face checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config = read_json(folder / "config.json")
        self._files: dict[str, File] = {}  # by tensor
        for one, index, opened in ((FILE, _INDEX, SafetensorsFile), (torch_bin.FILE, torch_bin.INDEX, TorchFile)):
            if (folder / one).is_file():
                file = opened(folder / one)
                self._files = dict.fromkeys(file.tensors, file)
                if (folder / index).is_file():
                    self.notes += (f"{folder / index}: is left out, with its shards: {one} lies beside it",)
            elif (folder / index).is_file():
                self._open_shards(folder / index, opened)
            if self._files:
                break
        else:
            for name in _PICKLES:
                if (folder / name).exists():
                    refuse_pointer(folder / name)
                    raise GossamerError(f"{folder / name}: is not read; use safetensors, or {torch_bin.FILE}")
            raise GossamerError(f"{folder}: no {FILE} and no {_INDEX}")
        self._tensors = Tensors((name, StoredTensor(file, name)) for name, file in self._files.items())
        for old, new in _LEGACY:  # of BERT's first checkpoints
            for name in [name for name in self._tensors if name.endswith(old)]:
                self._tensors.put(name.removesuffix(old) + new, self._tensors.pop(name))
        self.notes += tuple(decode(self._tensors, folder, self.config))
        self.parallel = take_branches(self._tensors)
        self.low_rank = read_low_rank(folder)

    def _open_shards(self, index: Path, opened: Callable[[Path], File]) -> None:
        document = read_json(index)
        places = document.get("weight_map")
        if not isinstance(places, dict) or not places:
            raise GossamerError(f"{index}: weight_map is missing or empty")
        ending = Path(index.name.removesuffix(".index.json")).suffix
        shards: dict[str, File] = {}
        for name, shard in places.items():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(ending):
                raise GossamerError(f"{index}: tensor {name} lies in {shard!r:.80}, which is no file of this folder")
            path = index.parent / shard
            if shard not in shards:
                if not path.is_file():
                    raise GossamerError(f"{path}: missing; {index.name} says that tensor {name} is in it")
                shards[shard] = opened(path)
            if name not in shards[shard].tensors:
                raise GossamerError(f"{path}: tensor {name} is missing; {index.name} says that it is there")
            self._files[name] = shards[shard]
        for path in sorted(index.parent.glob(f"*-of-*{ending}")):
            if _SHARD.fullmatch(path.stem) and path.name not in shards:
                self.notes += (f"{path}: is left out: {index.name} does not name this shard",)
        unlisted = []
        for file in shards.values():  # what the index does not list is stored all the same
            for name in file.tensors:
                if (other := self._files.setdefault(name, file)) is not file and not _same(name, other, file):
                    raise GossamerError(
                        f"{file.path}: tensor {name} is in {other.path.name}, too, with other values: which of them is "
                        "meant cannot be told"
                    )
                if name not in places:
                    unlisted.append(f"{name} of {file.path.name}")
        self.notes += tuple(f"{index}: {note}" for note in _doubts(document, shards, unlisted))

    def names(self) -> list[str]:  # noqa: D102 - as in the base class, as are those below
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:  # noqa: D102
        return self._tensor(name).shape

    def dtype(self, name: str) -> str:  # noqa: D102
        stored = self._tensor(name).dtype
        return _TYPES.get(stored, stored)

    def tensor(self, name: str) -> NDArray[np.float32]:  # noqa: D102
        return self._tensor(name).float32()

    def codes(self, name: str) -> Codes | None:  # noqa: D102
        return self._tensor(name).codes()

    def form(self, name: str) -> str | None:  # noqa: D102
        return self._tensor(name).form

    def has_rows(self, name: str) -> bool:  # noqa: D102
        tensor = self._tensor(name)
        plain = isinstance(tensor, StoredTensor) and isinstance(tensor.file, SafetensorsFile)
        return plain and tensor.dtype in _TYPES

    def rows(self, name: str, rows: slice) -> NDArray[np.float32]:  # noqa: D102
        tensor = self._tensor(name)
        if isinstance(tensor, StoredTensor) and isinstance(tensor.file, SafetensorsFile):
            return tensor.file.float32(tensor.name, rows)
        return super().rows(name, rows)

    def add_zeros(self, name: str, length: int) -> None:  # noqa: D102
        self._tensors[name] = Zeros(self.path, name, length)

    def leave_out(self, name: str) -> None:
        """Forgets a tensor that follows from the config; what is written of this checkpoint is without it."""
        del self._tensors[name]

    def same(self, first: str, second: str) -> bool:  # noqa: D102
        one, other = self._tensor(first), self._tensor(second)
        if one.dtype == other.dtype and isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
            return np.array_equal(one.raw(), other.raw())  # copies nothing
        return super().same(first, second)

    def _tensor(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise GossamerError(f"{self.path}: tensor {name} is missing") from None

    def tokenizer(self) -> Tokenizer:  # noqa: D102
        return Tokenizer.from_folder(self.path)

    def pooling(self) -> Pooling | None:  # noqa: D102
        return read_pooling(self.path)

    def copy_companions(self, dst: Path) -> None:  # noqa: D102
        for name in COMPANIONS:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, dst / name)
        templates = [str(path.relative_to(self.path)) for path in self.path.glob(TEMPLATE_FILES[1])]
        for name in pooling_files(self.path) + templates:
            (dst / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.path / name, dst / name)
