"""The keys of a GGUF file as the content of a config.json; what is not understood is refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..arch import keys as arch_keys
from ..errors import GossamerError
from .gguf_families import ARCHITECTURES, Architecture

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors with divisors of rotary frequencies: Llama 3's scaling, evaluated, and LongRoPE's two."""

_ROPE = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
ROTARY = (
    *_ROPE.values(),
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.finetuned",
    "rope.scaling.type",
)
"""Keys of all architectures that have rotary positions."""
KNOWN = (
    "attention.causal",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",  # of another kind of norm, where it is not asked for
    "attention.value_length",
    "expert_used_count",
    "tensor_data_layout",
    "vocab_size",  # the embedding has it
)
"""Keys of all architectures beside those of their tables."""


def find(path: Path, architecture: Any) -> Architecture:
    """Returns what there is to know of an architecture.

    Raises:
        GossamerError: it is not supported.
    """
    family = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise GossamerError(
            f"{path}: architecture {architecture!r:.80} is not supported in GGUF files; there are: "
            f"{', '.join(ARCHITECTURES)}"
        )
    return family


def read_config(
    path: Path,
    architecture: str,
    family: Architecture,
    keys: dict[str, Any],
    names: Collection[str],
    vocab: int,
    factors: dict[str, list[float]],
) -> tuple[dict[str, Any], dict[str, int]]:
    """Builds the content of a config.json.

    Args:
        path: The file, for errors.
        architecture: Its name of the family.
        family: What `find` returns for that.
        keys: Its keys.
        names: Its tensors.
        vocab: Rows of the embedding.
        factors: Divisors of the rotary frequencies that are stored as tensors.

    Returns:
        The config, and the heads of the linears whose rotary pairs lie side by side in the file, by short name.

    Raises:
        GossamerError: a key is missing, has a bad value, or asks for what there is not.
    """
    prefix = f"{architecture}."

    def get(key: str) -> Any:
        value = keys.get(prefix + key)
        return value[0] if isinstance(value, list) and value and value.count(value[0]) == len(value) else value

    config: dict[str, Any] = {"model_type": family.model_type, **family.fixed}
    for own, key in family.needed.items():
        config[own] = get(key)
        if config[own] is None:
            raise GossamerError(f"{path}: key {prefix}{key} is missing")
    config |= {own: get(key) for own, key in family.optional.items() if get(key) is not None}
    if config.get("sliding_window") == 0:
        del config["sliding_window"]
    heads, kv_heads, head_dim = _heads(path, prefix, get, family)
    if "head_dim" in family.optional:
        config["head_dim"] = head_dim  # families without the key have widths of their own
    # What readers take where a file leaves it out, whatever a config would mean by that.
    absent = {"attention.head_count_kv": heads, "attention.scale": head_dim**-0.5, "rope.freq_base": 10000.0}
    for own, key in family.optional.items():
        if key in absent:
            config.setdefault(own, absent[key])
    _refuse_unread(path, prefix, get, keys, family, head_dim)
    if family.rotary:
        _add_rotary(path, prefix, get, config, factors, family.partial, head_dim)
    family.more(config, get, names)
    tokens = {name: keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    config |= {
        "vocab_size": vocab,
        "tie_word_embeddings": "output.weight" not in names,
        **{f"{name}_token_id": token for name, token in tokens.items() if token is not None},
        "torch_dtype": "float32",
    }
    return config, {"q": heads, "k": kv_heads} if family.permuted else {}


def _heads(path: Path, prefix: str, get: Any, family: Architecture) -> tuple[int, Any, int]:
    """Heads of queries, heads of keys and values, and the width of one, which goes with that of the stream."""
    heads, hidden = get("attention.head_count"), get("embedding_length")
    if type(heads) is not int or heads < 1 or type(hidden) is not int:
        raise GossamerError(f"{path}: {prefix}attention.head_count must be one whole number, got {heads!r:.80}")
    width = get("attention.key_length") or hidden // heads
    if type(width) is not int or width < 1:
        raise GossamerError(f"{path}: the width of a head must be a whole number above 0, got {width!r:.80}")
    if "head_dim" not in family.optional and width * heads != hidden:
        raise GossamerError(
            f"{path}: {prefix}attention.key_length {width} is not one that {prefix.removesuffix('.')} has"
        )
    for key in ("attention.value_length", *(() if family.partial else ("rope.dimension_count",))):
        if get(key) not in (None, width):
            raise GossamerError(f"{path}: {prefix}{key} {get(key)} is not the width of a head, {width}")
    return heads, get("attention.head_count_kv") or heads, width


def _refuse_unread(
    path: Path, prefix: str, get: Any, keys: dict[str, Any], family: Architecture, head_dim: int
) -> None:
    """Refuses what a file asks for and nobody reads."""
    if get("expert_count") and "expert_count" not in (*family.optional.values(), *family.known):
        raise GossamerError(f"{path}: mixtures of experts ({prefix}expert_count) are not supported")
    if get("attention.causal") is False:
        raise GossamerError(f"{path}: models that look ahead ({prefix}attention.causal) are not supported")
    # Zero switches any other off.
    others = {key: value for key, value in keys.items() if key.startswith(prefix) and value != 0}
    known = {prefix + key for key in (*family.keys, *KNOWN, *(ROTARY if family.rotary else ()))}
    arch_keys.unread(others, known, str(path), {f"{prefix}attention.scale": head_dim**-0.5})


def _add_rotary(
    path: Path,
    prefix: str,
    get: Any,
    config: dict[str, Any],
    factors: dict[str, list[float]],
    partial: str,
    width: int,
) -> None:
    """Adds what the keys say of rotary positions; partial: what the share of a head's width is called, or ""."""
    context = get("context_length")
    if partial and (dims := get("rope.dimension_count")) is not None:
        if type(dims) is not int or not 0 <= dims <= width:
            raise GossamerError(f"{path}: {prefix}rope.dimension_count must be at most {width}, got {dims!r:.80}")
        config[partial] = dims / width
    if scaling := _rope_scaling(path, prefix, get, factors, context):
        config["rope_scaling"] = scaling


def _rope_scaling(path: Path, prefix: str, get: Any, factors: dict[str, list[float]], context: int) -> dict[str, Any]:
    """The scaling of rotary frequencies. A factor without a type is linear, and once it had another name."""
    factor = get("rope.scaling.factor") or get("rope.scale_linear") or 1.0
    kind = get("rope.scaling.type") or "linear"
    whole, short, long = (factors.get(name) for name in ROPE_FACTORS)
    if short is not None and long is not None:
        attention = get("rope.scaling.attn_factor")
        return {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "factor": factor,
            "original_max_position_embeddings": get("rope.scaling.original_context_length") or context,
            **({} if attention is None else {"attention_factor": attention}),
        }
    if whole is not None:
        if kind not in ("none", "linear"):
            raise GossamerError(f"{path}: {ROPE_FACTORS[0]} beside {prefix}rope.scaling.type {kind!r:.80}")
        # Under this type config.json holds such divisors as they are; equal lists mean the same for every length.
        divisors = [value * (factor if kind == "linear" else 1.0) for value in whole]
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "factor": 1.0,
            "original_max_position_embeddings": context,
        }
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    values = {own: get(key) for own, key in _ROPE.items() if get(key)}
    return {"rope_type": kind, **values, "factor": factor}
