"""Packed folders: gossamer.json, weights.safetensors and the tokenizer, mapped into memory and used as they lie there.

docs/format.md describes them. Nothing in such a folder is trusted: every number is checked against the decoder's
config, and every stream against the numbers, before a kernel sees them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..arch.llama import read_flat
from ..arch.spec import Transformer
from ..checkpoints.branches import deltas_of
from ..checkpoints.low_rank import LOW_RANK_U, LOW_RANK_V
from ..errors import GossamerError
from ..files import read_json
from ..folders import new_folder
from ..formats import FORMATS, GROUPS, INTEGER_TYPES, PATTERN_LENGTHS, TYPES
from ..hashes import json_sha256, sampled_sha256, sha256
from ..safetensors_io import SafetensorsFile, SafetensorsWriter
from ..text.tokenizer import Tokenizer

FORMAT_VERSION = 2
_VERSIONS = (1, FORMAT_VERSION)  # that can be read
LAYOUT = "cpu16x4-v1"

_CONFIG = "gossamer.json"
_WEIGHTS = "weights.safetensors"
_LARGEST = 1 << 24
_OWN_DIGEST = "document_sha256"  # of the document without this key; folders packed earlier have none
_SAMPLED = "weights_sampled_sha256"  # of the weights beside it, so that those of another folder are told on loading
_STREAMS = {
    "values": "U8",
    "masks": "U64",
    "offsets": "U64",
    "scales": "F16",
    "columns": "U8",
    "lanes": "U16",
    "counts": "U8",
    "slots": "U64",
    "steps": "U64",
}
_WEIGHT_KEYS = ("format", "type", "rows", "cols", "group", "pattern", "nnz", "reason")


@dataclass
class PackedModel:
    """A packed model in memory, or mapped from its folder.

    Attributes:
        config: Its description.
        weights: Matrices by canonical name: embed, head, layers.3.q, …
        vectors: Norms and biases by canonical name, float32.
        tokenizer: Of the model.
        info: "name", "family", "source" and "notes" about where it came from.
        reasons: Why each matrix has its format, in words.
    """

    config: Transformer
    weights: dict[str, _core.Weight]
    vectors: dict[str, NDArray[np.float32]]
    tokenizer: Tokenizer
    info: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)


def is_packed(folder: Path) -> bool:
    """Returns whether a folder is a packed one, whole or not."""
    return (folder / _CONFIG).is_file()


def _factor_shapes(
    path: Path, entries: dict[str, Any], shapes: dict[str, tuple[int, int]], factors: list[str]
) -> dict[str, tuple[int, int]]:
    """Shapes of both factors of every low-rank branch that a weight tells of."""
    found: dict[str, tuple[int, int]] = {}
    for name in factors:
        owner, _, _ = name.rpartition(".")
        entry = entries.get(owner + LOW_RANK_U)
        rank = entry.get("cols") if isinstance(entry, dict) else None
        if type(rank) is not int or not 1 <= rank <= _LARGEST:
            raise GossamerError(f"{path}: weight {owner}: its low-rank branch has a bad rank {rank!r:.80}")
        if "." in owner and owner in shapes:
            rows, cols = shapes[owner]
            found |= {owner + LOW_RANK_U: (rows, rank), owner + LOW_RANK_V: (rank, cols)}
    return found


@dataclass(frozen=True)
class Entry:
    """What a packed folder says of a weight.

    Attributes:
        format: One of `FORMATS`.
        type: One of `TYPES`.
        rows: Outputs.
        cols: Inputs.
        group: Inputs a scale; 0 for a whole row, and for float types.
        pattern: (N, M) of format "nm".
        nnz: Stored values that are not zero.
        reason: Why it is stored so, in words.
        nbytes: What it takes; not written, since the streams say it.
    """

    format: str
    type: str
    rows: int
    cols: int
    group: int
    pattern: tuple[int, int] | None
    nnz: int
    reason: str
    nbytes: int

    @classmethod
    def of(cls, weight: _core.Weight, reason: str = "", nnz: int | None = None) -> Entry:
        """Describes a weight; its non-zeros are counted unless they are known."""
        return cls(
            weight.format,
            weight.type,
            weight.rows,
            weight.cols,
            weight.group,
            weight.pattern,
            weight.nnz if nnz is None else nnz,
            reason,
            weight.nbytes,
        )


class PackedWriter:
    """Writes a packed folder matrix by matrix, so that none has to stay in memory: `add` in a `with`, then `finish`."""

    def __init__(self, part: Path, config: Transformer, factors: Iterable[str]) -> None:
        self._part, self._config = part, config
        self._entries: dict[str, Entry] = {}
        names = [f"{name}.{stream}" for name in (*config.weights, *factors) for stream in _STREAMS]
        self._file = SafetensorsWriter(part / _WEIGHTS, [*names, *config.vectors], metadata={"layout": LAYOUT})

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def add(self, name: str, weight: _core.Weight, entry: Entry) -> None:
        """Writes a matrix."""
        for stream, values in weight.streams().items():
            self._file.add(f"{name}.{stream}", values)
        self._entries[name] = entry

    def add_vector(self, name: str, values: NDArray[np.float32]) -> None:
        """Writes a norm or a bias."""
        self._file.add(name, values)

    def finish(self, tokenizer: Tokenizer, info: dict[str, Any]) -> None:
        """Writes what lies beside the weights, when all of those are there and the file is closed."""
        entries = {name: vars(entry) for name, entry in self._entries.items()}
        document = {
            "format_version": FORMAT_VERSION,
            "layout": LAYOUT,
            "transformer": self._config.to_dict(),
            "weights": {name: {key: entry[key] for key in _WEIGHT_KEYS} for name, entry in entries.items()},
            "info": info,
        }
        tokenizer.save(self._part)
        document["sha256"] = {path.name: sha256(path) for path in sorted(self._part.iterdir())}
        document[_SAMPLED] = sampled_sha256(self._part / _WEIGHTS)
        document[_OWN_DIGEST] = document_digest(json.loads(json.dumps(document)))  # as it will be read
        (self._part / _CONFIG).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_packed(
    folder: str | Path, model: PackedModel, *, force: bool = False, reads: Iterable[str | Path] = ()
) -> None:
    """Writes a packed folder, or nothing.

    Args:
        folder: Destination: must not exist yet, or be empty.
        model: What to write.
        force: Whether a model that lies there is replaced.
        reads: What is not replaced, since the model comes from there.

    Raises:
        GossamerError: something else lies at the destination, or it cannot be written.
    """
    with new_folder(Path(folder), force=force, reads=reads) as part:
        factors = set(model.weights) - set(model.config.weights)
        with PackedWriter(part, model.config, factors) as writer:
            for name, weight in model.weights.items():
                writer.add(name, weight, Entry.of(weight, model.reasons.get(name, "")))
            for name, values in model.vectors.items():
                writer.add_vector(name, values)
        writer.finish(model.tokenizer, model.info)


def document_digest(document: dict[str, Any]) -> str:
    """Returns the checksum of what a packed folder's gossamer.json says, itself left out."""
    return json_sha256({key: value for key, value in document.items() if key != _OWN_DIGEST})


def _is_own(document: dict[str, Any]) -> bool:
    """Whether a document is what was written, as far as it can tell."""
    return _OWN_DIGEST not in document or document[_OWN_DIGEST] == document_digest(document)


def _written_beside(document: dict[str, Any]) -> list[str]:
    """Names of the files that were written with a document; folders packed earlier do not say."""
    digests = document.get("sha256")
    return [name for name in digests if Path(name).name == name] if isinstance(digests, dict) else []


def changed_files(folder: str | Path) -> dict[str, bool]:
    """Says of each file of a packed folder whether it is no longer what was written: it is missing, or has other bytes.

    Raises:
        GossamerError: the folder has no usable checksums, since it is none or was packed by an earlier version.
    """
    path = Path(folder) / _CONFIG
    document = read_json(path)
    digests = document.get("sha256")
    if not isinstance(digests, dict) or not digests:
        raise GossamerError(f"{path}: has no checksums; folders have them since they are packed by this version")
    changed = {_CONFIG: not _is_own(document)} if _OWN_DIGEST in document else {}
    for name, digest in digests.items():
        if Path(name).name != name:
            raise GossamerError(f"{path}: sha256: {name!r:.80} is no file's name")
        file = Path(folder) / name
        try:
            changed[name] = sha256(file) != digest
        except FileNotFoundError:
            changed[name] = True
        except (OSError, ValueError) as error:  # the latter of names that hold a zero byte
            raise GossamerError(f"{file}: {error}") from None
    return changed


def read_packed(folder: str | Path) -> PackedModel:
    """Maps a packed folder; its weights stay on disk until they are used.

    Args:
        folder: As `write_packed` makes it.

    Raises:
        GossamerError: a file is missing, truncated, of another version, or contradicts itself. The line names the file
            and the weight or stream.
    """
    folder = Path(folder)
    path = folder / _CONFIG
    document = read_json(path)
    for key, known in (("format_version", _VERSIONS), ("layout", (LAYOUT,))):
        found = document.get(key)
        if type(found) is not type(known[0]) or found not in known:
            raise GossamerError(
                f"{path}: {key} is {found!r:.80}; this version of gossamer knows {' and '.join(map(repr, known))}"
            )
    if not _is_own(document):
        raise GossamerError(f"{path}: was changed since it was written: {_OWN_DIGEST} is not that of its content")
    for name in _written_beside(document):
        if not (folder / name).is_file():
            raise GossamerError(f"{folder / name}: missing; {_CONFIG} says that it was written")
    file = SafetensorsFile(folder / _WEIGHTS)
    config = _describe_model(path, document, file.tensors)
    entries, info = document.get("weights"), document.get("info")
    if not isinstance(entries, dict) or not isinstance(info, dict):
        raise GossamerError(f"{path}: weights and info must be objects")
    factors = [name for name in entries if name.endswith((LOW_RANK_U, LOW_RANK_V))]
    shapes = config.weights
    shapes |= _factor_shapes(path, entries, shapes, factors)
    shapes |= {delta: shapes[name] for name in config.linears for delta in deltas_of(name, entries)}
    if set(entries) != set(shapes):
        name = min(set(entries) ^ set(shapes))
        raise GossamerError(f"{path}: weight {name} is {'missing' if name in shapes else 'not part of the decoder'}")
    lengths = config.vectors
    streams: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in shapes}
    vectors: dict[str, NDArray[np.float32]] = {}
    for name, found in file.tensors.items():
        owner, _, stream = name.rpartition(".")
        if owner in streams and stream in _STREAMS:
            if found.dtype != _STREAMS[stream] or len(found.shape) != 1:
                raise GossamerError(f"{file.path}: tensor {name} must be a vector of {_STREAMS[stream]}")
            streams[owner][stream] = file.raw(name)
        elif name in lengths:
            length = lengths[name]
            if found.dtype != "F32" or found.shape != (length,):
                raise GossamerError(f"{file.path}: tensor {name} must be a vector of {length} F32 values")
            vectors[name] = file.float32(name)
        else:
            raise GossamerError(f"{file.path}: tensor {name} is not part of the decoder")
    if missing := set(lengths) - set(vectors):
        raise GossamerError(f"{file.path}: tensor {min(missing)} is missing")
    weights = {}
    for name, shape in shapes.items():
        description = _check_weight(path, name, entries[name], shape)
        try:
            weights[name] = _core.weight_from_streams(*description, streams[name])
        except ValueError as error:
            raise GossamerError(f"{file.path}: weight {name}: {error}") from None
    if _SAMPLED in document and sampled_sha256(file.path) != document[_SAMPLED]:
        raise GossamerError(f"{file.path}: is not the file that {_CONFIG} was written with: {_SAMPLED} is another")
    reasons = {name: str(entry.get("reason", "")) for name, entry in entries.items()}
    return PackedModel(config, weights, vectors, Tokenizer.from_folder(folder), info, reasons)


def _describe_model(path: Path, document: dict[str, Any], vectors: Iterable[str]) -> Transformer:
    """The description of a folder, of whichever version; sizes multiply without overflow behind this."""
    try:
        if document["format_version"] == FORMAT_VERSION:
            return Transformer.from_dict(document.get("transformer"))
        # Version 1 says of no bias that it is there.
        found = (name.split(".") for name in vectors if name.endswith(".bias"))
        return read_flat(document.get("decoder"), tuple(dict.fromkeys(parts[-2] for parts in found if len(parts) == 4)))
    except GossamerError as error:
        raise GossamerError(f"{path}: {error}") from None


def _check_weight(
    path: Path, name: str, entry: Any, shape: tuple[int, int]
) -> tuple[str, str, int, int, int, tuple[int, int] | None]:
    """Checks one weight's description; returns format, type, rows, cols, group, pattern."""
    where = f"{path}: weight {name}"
    if not isinstance(entry, dict) or not set(entry) <= set(_WEIGHT_KEYS):
        raise GossamerError(f"{where}: must be an object of {', '.join(sorted(_WEIGHT_KEYS))}")
    if (size := (entry.get("rows"), entry.get("cols"))) != shape:
        raise GossamerError(f"{where}: its size is {size!r:.80}, the decoder needs {shape}")
    format_, type_, group, pattern = (entry.get(key) for key in ("format", "type", "group", "pattern"))
    if format_ not in FORMATS or type_ not in TYPES:
        raise GossamerError(f"{where}: unknown format {format_!r:.80} or type {type_!r:.80}")
    if type(group) is not int or group not in (GROUPS if type_ in INTEGER_TYPES else (0,)):
        raise GossamerError(f"{where}: bad group {group!r:.80}")
    if format_ != "nm":
        if pattern is not None:
            raise GossamerError(f"{where}: format {format_} has no pattern")
        return format_, type_, *shape, group, None
    if not isinstance(pattern, list) or len(pattern) != 2 or not all(type(part) is int for part in pattern):
        raise GossamerError(f"{where}: bad pattern {pattern!r:.80}")
    if pattern[1] not in PATTERN_LENGTHS or not 1 <= pattern[0] <= pattern[1]:
        raise GossamerError(f"{where}: pattern {pattern[0]}:{pattern[1]} is not supported")
    return format_, type_, *shape, group, (pattern[0], pattern[1])
