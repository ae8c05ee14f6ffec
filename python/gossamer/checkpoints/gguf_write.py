"""GGUF files out of checkpoints, for programs that read them: keys and tensors by the tables that reading has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..arch.sources import Source, parts_of
from ..arch.spec import Attention, Rope, Transformer
from ..errors import GossamerError
from ..folders import shown_name
from ..parts import new_file
from ..progress import Progress
from .base import Checkpoint, refuse_branches
from .gguf_families import ARCHITECTURES, Architecture
from .gguf_names import own_name
from .gguf_tokenizer_write import tokenizer_keys

if TYPE_CHECKING:
    import gguf

_FILE_TYPES = {"f16": 1, "bf16": 32, "q8_0": 7, "f32": 0}
TYPES = tuple(_FILE_TYPES)
"""What matrices may be stored as."""

_QUANTIZATION = 2  # version of the quantized types

_ROPE_FACTORS = "rope_freqs.weight"


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
        type: One of `TYPES`, for matrices; vectors are float32, as are matrices whose rows are no whole blocks of 32.
        force: Whether a file that is there is replaced.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: GGUF files cannot hold this family or its tokenizer, or the file cannot be written.
    """
    import gguf

    if type not in TYPES:
        raise GossamerError(f"type must be one of {', '.join(TYPES)}, got {type!r:.80}")
    if path.suffix != ".gguf":
        raise GossamerError(f"{path}: the name must end with .gguf")
    if path.exists() and not (force and path.is_file()):
        raise GossamerError(f"{path}: exists already{'' if path.is_dir() else '; --force replaces it'}")
    refuse_branches(checkpoint, "written as GGUF")
    name, architecture = _architecture(checkpoint)
    described = arch.family(checkpoint.config).describe(checkpoint.config)
    keys = {
        "general.type": "model",
        "general.name": shown_name(checkpoint.path).removesuffix(".gguf"),
        "general.file_type": _FILE_TYPES[type],
        "general.quantization_version": _QUANTIZATION,
        f"{name}.vocab_size": described.vocab,
        **_keys(checkpoint, name, architecture, described),
        **tokenizer_keys(checkpoint),
    }
    sources = checkpoint.sources()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part:
            writer = gguf.GGUFWriter(part.path, name, use_temp_file=False)
            for key, value in keys.items():
                _add(writer, key, value)
            factors = _factors(checkpoint, described)
            if factors is not None:
                writer.add_tensor_info(
                    _ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes, gguf.GGMLQuantizationType.F32
                )
            for own, shape in described.tensors.items():
                kind = _kind(shape, type)
                stored = gguf.quant_shape_to_byte_shape(shape, kind)
                writer.add_tensor_info(own_name(own, architecture), stored, np.dtype(np.uint8), math.prod(stored), kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors)
            for done, (own, shape) in enumerate(described.tensors.items()):
                if progress:
                    progress(done, len(sources), f"writing {own}")
                values = _permuted(checkpoint.read(sources[own], finite=True), own, described, architecture)
                data = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), _kind(shape, type))
                writer.write_tensor_data(data.view(np.uint8))
            writer.close()
    except OSError as error:
        raise GossamerError(f"{path}: cannot write: {error.strerror or error}") from None
    if progress:
        progress(len(sources), len(sources), "writing")


def _architecture(checkpoint: Checkpoint) -> tuple[str, Architecture]:
    """What GGUF files call the family."""
    model_type = checkpoint.config.get("model_type")
    plain = {one.model_type: (name, one) for name, one in ARCHITECTURES.items() if not one.fused}
    if model_type not in plain:
        raise GossamerError(
            f"{checkpoint.path}: model_type {model_type!r:.80} cannot be written as GGUF; there are: {', '.join(plain)}"
        )
    return plain[str(model_type)]


def _keys(checkpoint: Checkpoint, name: str, architecture: Architecture, described: Transformer) -> dict[str, Any]:
    config, found = checkpoint.config, dict[str, Any]()
    attention = _attention(described)
    implied = {
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "context_length": described.context,
    }
    for own, key in {**architecture.needed, **architecture.optional}.items():
        value = implied.get(key, config.get(own))
        if value is None and key in architecture.needed.values():
            raise GossamerError(f"{checkpoint.path}: {own} is missing from its config")
        if value is not None and value is not False:
            found[f"{name}.{key}"] = float(value) if key in _FLOATS else value
    found[f"{name}.attention.value_length"] = attention.head_dim
    if isinstance(attention.positions, Rope):
        theta, scaling = _rotary(checkpoint)
        found |= {f"{name}.rope.dimension_count": 2 * len(attention.positions.inv_freq)}
        found |= {f"{name}.rope.freq_base": theta} | {f"{name}.rope.scaling.{key}": one for key, one in scaling.items()}
    return found


_FLOATS = frozenset(
    key
    for one in ARCHITECTURES.values()
    for key in (*one.needed.values(), *one.optional.values())
    if key.endswith(("epsilon", "scale", "softcapping", "kqv", "freq_base"))
)


def _rotary(checkpoint: Checkpoint) -> tuple[float, dict[str, Any]]:
    """The base of rotary frequencies, and the keys of their scaling."""
    config = checkpoint.config
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    original = parameters.get("original_max_position_embeddings")
    if kind == "linear":
        return theta, {"type": "linear", "factor": float(parameters["factor"])}
    if kind == "yarn" and not set(parameters) & {"mscale", "mscale_all_dim", "attention_factor", "truncate"}:
        own = {"yarn_beta_fast": parameters.get("beta_fast"), "yarn_beta_slow": parameters.get("beta_slow")}
        keys = {"type": "yarn", "factor": float(parameters["factor"]), "original_context_length": original}
        return theta, keys | {key: float(value) for key, value in own.items() if value}
    if kind not in ("default", "llama3"):
        raise GossamerError(f"{checkpoint.path}: rope_type {kind!r:.80} cannot be written as GGUF")
    return theta, {}


def _factors(checkpoint: Checkpoint, described: Transformer) -> NDArray[np.float32] | None:
    """Divisors of the rotary frequencies where keys do not tell their scaling: Llama 3's, evaluated."""
    parameters = checkpoint.config.get("rope_parameters") or checkpoint.config.get("rope_scaling") or {}
    positions = _attention(described).positions
    if "llama3" not in (parameters.get("rope_type"), parameters.get("type")) or not isinstance(positions, Rope):
        return None
    theta, _ = _rotary(checkpoint)
    count = len(positions.inv_freq)
    plain = theta ** -(np.arange(count) / count)
    return np.array(plain / np.array(positions.inv_freq), np.float32)


def _attention(described: Transformer) -> Attention:
    mixers = [branch.mixer for branch in described.blocks[0].branches]
    return next(mixer for mixer in mixers if isinstance(mixer, Attention))


def _permuted(
    values: NDArray[np.float32], name: str, described: Transformer, architecture: Architecture
) -> NDArray[np.float32]:
    """Rotary pairs side by side, where files of the architecture have them so."""
    _, own, _ = parts_of(name)
    attention = _attention(described)
    heads = {"q": attention.heads, "k": attention.kv_heads}.get(own, 0) if architecture.permuted else 0
    if not heads:
        return values
    stored = np.empty_like(values)
    Source(name, values.shape, heads=heads).write(stored, values)
    return stored


def _kind(shape: tuple[int, ...], type: str) -> gguf.GGMLQuantizationType:
    import gguf

    if len(shape) == 1 or (type == "q8_0" and shape[-1] % 32):
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType[type.upper()]


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
