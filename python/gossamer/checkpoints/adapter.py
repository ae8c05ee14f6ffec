"""Adapters: what is added to a model's linears without changing them, by canonical name.

Three forms are read: low-rank branches as PEFT has them (`lora`); differences of tensors (composable sparse
fine-tuning, Ansell et al. 2022) in a safetensors file, each as the whole tensor NAME or as NAME.indices [dimensions,
count] and NAME.values [count]; and the latter's own file pytorch_diff.bin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..arch.sources import Source, parts_of
from ..errors import GossamerError
from ..safetensors_io import SafetensorsFile
from .lora import CONFIG, LowRank, lacking, read_config, read_lora
from .torch_archive import floats, read_archive

DIFFERENCES = ("diff.safetensors", "pytorch_diff.bin")
_WEIGHT = ".weight"
_INDICES, _VALUES = ".indices", ".values"


@dataclass(frozen=True)
class Adapter:
    """What an adapter adds.

    Attributes:
        path: Where it was read.
        low_rank: Branches of linears.
        deltas: Matrices [outputs, inputs] of linears, most of them zero.
        biases: Vectors of linears.
        base: The model that it was trained beside, as its config calls it; empty where nothing says so.
        lacking: Modules that its config names and it has nothing for.
    """

    path: Path
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    deltas: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    biases: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    base: str = ""
    lacking: tuple[str, ...] = ()


class Places:
    """Where the names of checkpoints lie in a model."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Takes the content of config.json.

        Raises:
            GossamerError: as `gossamer.arch.family` and its `sources`.
        """
        family = arch.family(dict(config))
        self._prefix = family.PREFIX
        self._stored = arch.stored(family.sources(dict(config)))

    def find(self, file: Path, name: str) -> arch.Sources:
        """Returns the canonical tensors of a stored one; the family's prefix may be missing.

        Raises:
            GossamerError: the model has no such tensor; the line names `file`.
        """
        for known in (name, self._prefix + name):
            if known in self._stored:
                return self._stored[known]
        raise GossamerError(f"{file}: {name}: the model has no such tensor")

    def modules(self) -> list[str]:
        """Returns the linears that low-rank branches may be of, by the names of checkpoints; experts have none."""
        return [
            tensor.removesuffix(_WEIGHT)
            for tensor, sources in self._stored.items()
            if all(
                _is_linear(name, source)
                and source.index is None
                and not parts_of(name)[1].startswith(("experts.", "router"))
                for name, source in sources.items()
            )
        ]


def read_adapter(path: str | Path, places: Places) -> Adapter:
    """Reads an adapter.

    Args:
        path: A folder, or a file of differences.
        places: Of the model that it is for.

    Raises:
        GossamerError: it is no adapter, is not valid, or has something that the model lacks or that is not supported;
            the line names file and tensor.
    """
    path = Path(path)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return _placed_branches(path, places)
        for name in DIFFERENCES:
            if (path / name).is_file():
                return _placed_differences(path, path / name, places)
        raise GossamerError(f"{path}: is no adapter: it has none of {', '.join((CONFIG, *DIFFERENCES))}")
    if not path.is_file():
        raise GossamerError(f"{path}: no such adapter")
    if path.suffix not in (".safetensors", ".bin"):
        raise GossamerError(f"{path}: is no adapter: give a folder, or a .safetensors or .bin file of differences")
    return _placed_differences(path, path, places)


def _placed_branches(folder: Path, places: Places) -> Adapter:
    config, branches = read_config(folder), read_lora(folder)
    found = {module: places.find(folder, module + _WEIGHT) for module in branches}
    tensors = {source.tensor.removesuffix(_WEIGHT) for sources in found.values() for source in sources.values()}
    missing = lacking(config, places.modules(), tensors)
    adapter = Adapter(folder, base=config.get("base_model_name_or_path") or "", lacking=tuple(missing))
    for module, branch in branches.items():
        for name, source in found[module].items():
            if not _is_linear(name, source):
                raise GossamerError(f"{folder}: {module}: only linears of blocks can have a low-rank branch")
            if source.index is not None:
                raise GossamerError(f"{folder}: {module}: stacked weights cannot have a low-rank branch")
            shape = source.shape[::-1] if source.transpose else source.shape
            if (own := (len(branch.u), branch.v.shape[1])) != shape:
                raise GossamerError(f"{folder}: the low-rank branch of {module} is {list(own)}, not {list(shape)}")
            rows = replace(source, shape=branch.u.shape, transpose=False, plus=0.0).read(branch.u)
            if rows.any() and branch.v.any():
                _put(folder, adapter.low_rank, name, LowRank(rows, branch.v))
    return adapter


def _placed_differences(path: Path, file: Path, places: Places) -> Adapter:
    adapter = Adapter(path)
    for stored, read in _differences(file):
        sources = places.find(file, stored)
        shape = next(iter(sources.values())).shape
        values = read(shape)
        if not np.isfinite(values).all():
            raise GossamerError(f"{file}: tensor {stored} has NaN or infinite values")
        for name, source in sources.items():
            own = replace(source, plus=0.0).read(values)
            if not own.any():
                continue
            linear = name.removesuffix(".bias")
            if not _is_linear(name, source) and (linear == name or parts_of(linear)[1].endswith("norm")):
                raise GossamerError(f"{file}: tensor {stored}: differences are added to linears of blocks alone")
            _put(file, adapter.deltas if own.ndim == 2 else adapter.biases, name, np.ascontiguousarray(own))
    return adapter


def _is_linear(name: str, source: Source) -> bool:
    return name.startswith("layers.") and len(source.outcome) == 2


def _put(file: Path, found: dict[str, Any], name: str, value: Any) -> None:
    if name in found:
        raise GossamerError(f"{file}: {name} is there twice")
    found[name] = value


Read = Callable[[tuple[int, ...]], NDArray[np.float32]]


def _differences(path: Path) -> list[tuple[str, Read]]:
    """The tensors of a file: their names, and what makes them whole, given the shape."""
    if path.suffix == ".bin":
        return _encoded_differences(path)
    file = SafetensorsFile(path)
    if not file.tensors:
        raise GossamerError(f"{path}: holds no tensors")
    found: list[tuple[str, Read]] = []
    for name in file.tensors:
        stored = name.removesuffix(_VALUES)
        if name.endswith(_INDICES):
            file.info(name.removesuffix(_INDICES) + _VALUES)  # or an error that says so
        elif stored != name:
            found.append((stored, lambda shape, stored=stored: _scattered(file, stored, shape)))  # type: ignore[misc]
        else:
            found.append((name, lambda shape, name=name: _whole(file, name, shape)))  # type: ignore[misc]
    return found


def _whole(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = file.float32(name)
    if values.shape != shape:
        raise GossamerError(f"{file.path}: tensor {name} is {list(values.shape)}, not {list(shape)}")
    return values


def _scattered(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = file.float32(name + _VALUES)
    if (kind := file.info(name + _INDICES).dtype) not in ("I64", "I32"):
        raise GossamerError(f"{file.path}: tensor {name}{_INDICES} is of type {kind}, not I64 or I32")
    indices = file.raw(name + _INDICES)
    if values.ndim != 1 or indices.shape != (len(shape), len(values)):
        raise GossamerError(
            f"{file.path}: tensors {name}{_INDICES} and {_VALUES} are {list(indices.shape)} and "
            f"{list(values.shape)}, which do not fit {list(shape)}"
        )
    return scatter(f"{file.path}: tensor {name}", indices, values, shape)


def scatter(
    where: str, indices: NDArray[Any], values: NDArray[np.float32], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Returns a tensor of zeros but for some values; those of one place add up.

    Args:
        where: What errors begin with.
        indices: [dimensions, count].
        values: [count].
        shape: Of the tensor.

    Raises:
        GossamerError: an index is out of range.
    """
    sizes = np.array(shape, np.int64).reshape(-1, 1)
    if indices.size and ((indices < 0) | (indices >= sizes)).any():
        raise GossamerError(f"{where}: has an index outside {list(shape)}")
    whole = np.zeros(shape, np.float32)
    np.add.at(whole, tuple(indices.astype(np.int64)), values)
    return whole


def _encoded_differences(path: Path) -> list[tuple[str, Read]]:
    """Those of a pytorch_diff.bin: places are counted with the first dimension fastest, each from the one before."""
    document = read_archive(path)
    if not isinstance(document, dict) or not document.keys() <= {"diffs", "abs"}:
        raise GossamerError(f"{path}: holds no differences: it should be a dictionary of diffs and abs")
    diffs, whole = (document.get(key) or {} for key in ("diffs", "abs"))
    if not isinstance(diffs, dict) or not isinstance(whole, dict):
        raise GossamerError(f"{path}: diffs and abs must be dictionaries")
    if whole:
        raise GossamerError(f"{path}: abs: {next(iter(whole))!r:.80}: parameters that replace others are not supported")
    if not diffs:
        raise GossamerError(f"{path}: holds no tensors")
    return [
        (str(name), lambda shape, name=name, entry=entry: _decoded(path, name, entry, shape))  # type: ignore[misc]
        for name, entry in diffs.items()
    ]


def _decoded(path: Path, name: str, entry: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or entry.keys() != {"size", "index_steps", "values"}:
        raise GossamerError(f"{where}: must have size, index_steps and values")
    steps, values = entry["index_steps"], entry["values"]
    if isinstance(values, np.ndarray):
        values = floats(values)
    if tuple(entry["size"]) != shape:
        raise GossamerError(f"{where} is {list(entry['size'])}, not {list(shape)}")
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind != "f":
        raise GossamerError(f"{where}: values must be a vector of floats")
    if not isinstance(steps, list) or len(steps) != len(values) or not all(type(step) is int for step in steps):
        raise GossamerError(f"{where}: index_steps must be {len(values)} whole numbers")
    count = int(np.prod(shape))
    if steps and not (steps[0] >= 0 and min(steps[1:], default=1) > 0 and sum(steps) < count):
        raise GossamerError(f"{where}: has an index outside {list(shape)}, or one that does not rise")
    indices = np.array(np.unravel_index(np.cumsum(np.array(steps, np.int64)), shape, "F"), np.int64)
    return scatter(where, indices, values.astype(np.float32), shape)
