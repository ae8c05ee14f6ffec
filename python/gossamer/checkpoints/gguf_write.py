"""GGUF files out of checkpoints, for programs that read them: keys and tensors by the tables that reading has.

What is written is what reading would make the same description of, which is asked before anything is.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..arch.spec import Transformer
from ..arch.spec.parse import difference
from ..errors import GossamerError
from ..folders import shown_name
from ..part_files import new_file
from ..progress import Progress
from .base import Checkpoint, refuse_branches
from .gguf import GgufCheckpoint
from .gguf_families import ARCHITECTURES, Architecture
from .gguf_keys import described_keys
from .gguf_names import layout, unknown
from .gguf_tokenizer_write import tokenizer_keys
from .open import check

if TYPE_CHECKING:
    import gguf

_FILE_TYPES = {"f16": 1, "bf16": 32, "q8_0": 7, "f32": 0}
TYPES = tuple(_FILE_TYPES)
"""What matrices may be stored as."""

_QUANTIZATION = 2  # version of the quantized types


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    *,
    type: str = "f16",
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint as one GGUF file, or nothing.

    Args:
        checkpoint: The source.
        path: The file; must not exist yet.
        type: One of `TYPES`, for matrices; vectors are float32, as are matrices whose rows are no whole blocks of 32,
            and those that all else depends on.
        force: Whether a file that is there is replaced.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: GGUF files cannot hold this family or its tokenizer, what would be read back is not the same
            model, or the file cannot be written.
    """
    if type not in TYPES:
        raise GossamerError(f"type must be one of {', '.join(TYPES)}, got {type!r:.80}")
    if path.suffix != ".gguf":
        raise GossamerError(f"{path}: the name must end with .gguf")
    if path.exists() and not (force and path.is_file()):
        raise GossamerError(f"{path}: exists already{'' if path.is_dir() else '; --force replaces it'}")
    refuse_branches(checkpoint, "written as GGUF")
    name, architecture = _architecture(checkpoint)
    described = arch.family(checkpoint.config).describe(checkpoint.config)
    try:
        keys, factors = described_keys(checkpoint.config, architecture, described)
        tensors = _tensors(described, architecture, factors, type)
        if others := unknown(tensors, name):
            raise GossamerError(f"no {name} file has a tensor {others[0]}")
        own = {"general.architecture": name} | {f"{name}.{key}": value for key, value in keys.items()}
        places = _places(path, described, own, tensors)
    except GossamerError as error:
        raise GossamerError(f"{checkpoint.path}: cannot be written as GGUF: {error}") from None
    del own["general.architecture"]  # which the writer adds
    every = {
        "general.type": "model",
        "general.name": shown_name(checkpoint.path).removesuffix(".gguf"),
        "general.file_type": _FILE_TYPES[type],
        "general.quantization_version": _QUANTIZATION,
        f"{name}.vocab_size": described.vocab,
        **own,
        **tokenizer_keys(checkpoint),
    }
    for key in set(architecture.unheeded) & set(keys):
        logging.getLogger("gossamer").warning(
            "%s: other programs do not heed %s.%s, which is %s", path, name, key, keys[key]
        )
    held, sources = arch.stored(places), checkpoint.sources()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part, contextlib.closing(_begun(part.path, name, every, tensors)) as writer:
            for done, one in enumerate(tensors.values()):
                if progress:
                    progress(done, len(tensors), f"writing {one.name}")
                writer.write_tensor_data(_stored(checkpoint, one, held.get(one.name, {}), sources))
    except OSError as error:
        # numpy, which writes the tensors, says how much it wrote and not why.
        raise GossamerError(f"{path}: cannot write: {error.strerror or f'the disk may be full ({error})'}") from None
    if progress:
        progress(len(tensors), len(tensors), "writing")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file that will be, as the package describes those of one that is.

    Attributes:
        name: Its name.
        outputs_first: Its shape.
        tensor_type: What its values are stored as.
        data: Its values, where they are known already.
    """

    name: str
    outputs_first: tuple[int, ...]
    tensor_type: gguf.GGMLQuantizationType
    data: NDArray[np.float32] | None = None

    @property
    def shape(self) -> list[int]:
        """Inputs first."""
        return list(self.outputs_first[::-1])


def _begun(path: Path, name: str, keys: Mapping[str, Any], tensors: Mapping[str, _Tensor]) -> gguf.GGUFWriter:
    """A writer that has written all but the tensors' values, which come in their order."""
    import gguf

    writer = gguf.GGUFWriter(path, name, use_temp_file=False)
    for key, value in keys.items():
        _add(writer, key, value)
    for one in tensors.values():
        stored = gguf.quant_shape_to_byte_shape(one.outputs_first, one.tensor_type)
        writer.add_tensor_info(one.name, stored, np.dtype(np.uint8), math.prod(stored), one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _architecture(checkpoint: Checkpoint) -> tuple[str, Architecture]:
    """What GGUF files call the family."""
    model_type = checkpoint.config.get("model_type")
    known = {own: (name, one) for name, one in ARCHITECTURES.items() for own in (one.model_type, *one.also)}
    if model_type not in known:
        raise GossamerError(
            f"{checkpoint.path}: model_type {model_type!r:.80} cannot be written as GGUF; there are: "
            f"{', '.join(sorted(known))}"
        )
    return known[str(model_type)]


def _tensors(
    described: Transformer, architecture: Architecture, factors: Mapping[str, list[float]], type: str
) -> dict[str, _Tensor]:
    """The file's tensors by name, in the order of the computation."""
    import gguf

    exact = layout({name: described.tensors[name] for name in _exact(described)}, architecture)
    found = {}
    for name, values in factors.items():
        data = np.array(values, np.float32)
        found[name] = _Tensor(name, data.shape, gguf.GGMLQuantizationType.F32, data)
    for name, shape in layout(described.tensors, architecture).items():
        whole = name in exact or (type == "q8_0" and shape[-1] % 32)
        found[name] = _Tensor(name, shape, gguf.GGMLQuantizationType["F32" if whole else type.upper()])
    return found


def _exact(described: Transformer) -> list[str]:
    """Canonical names of vectors, and of matrices that are small, or that all else depends on."""
    matrices = described.linears.keys() | {"embed", "head"}
    return [name for name in described.tensors if name not in matrices]


def _places(path: Path, described: Transformer, keys: dict[str, Any], tensors: Mapping[str, _Tensor]) -> arch.Sources:
    """Where the canonical tensors will lie, by what reading will make of the file.

    Raises:
        GossamerError: that is another model.
    """
    rounded = {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in keys.items()}
    try:
        file = GgufCheckpoint(path, (rounded, dict(tensors)))
        back = check(file, path)
    except GossamerError as error:
        raise GossamerError(str(error).removeprefix(f"{path}: ")) from None
    if differs := difference(_layer_by_layer(described), _layer_by_layer(back)):
        where, own, other = differs
        raise GossamerError(f"no key tells {where}: {own!r:.80} would be read as {other!r:.80}")
    return file.places


def _layer_by_layer(described: Transformer) -> Transformer:
    """The same with a kind of blocks for each layer."""
    stack = described.stack
    return replace(described, stack=replace(stack, kinds=described.blocks, layers=tuple(range(described.layers))))


def _stored(checkpoint: Checkpoint, tensor: _Tensor, places: arch.Sources, sources: arch.Sources) -> NDArray[np.uint8]:
    """The bytes of a tensor, one of a stack after the other: of the canonical ones that have places in it."""
    import gguf

    def packed(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        data = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), tensor.tensor_type)
        return data.view(np.uint8).reshape(-1)

    if tensor.data is not None:
        return packed(tensor.data)
    wholes: dict[int, NDArray[np.float32]] = {}
    parts: dict[int, NDArray[np.uint8]] = {}
    for name, place in places.items():
        values = checkpoint.read(sources[name], finite=True)
        if place.index is not None:
            stacked = np.empty(place.shape[1:], np.float32)
            replace(place, shape=stacked.shape, index=None).write(stacked, values)
            parts[place.index] = packed(stacked)
        else:
            place.write(wholes.setdefault(0, np.empty(place.shape, np.float32)), values)
    return np.concatenate([parts[index] for index in sorted(parts)]) if parts else packed(wholes[0])


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
