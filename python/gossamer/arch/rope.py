"""Rotary position embeddings and their scaled variants, as inverse frequencies that do not change with the position.

Each variant computes what `transformers` computes, in float32 and in its order. Two of them depend on the sequence's
length there: "dynamic" and "longrope" have other frequencies beyond the original context. Here the context ends where
they would change, so that every position inside it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GossamerError
from . import keys
from .fields import FULL, SLIDING, integer, number, words

_WHERE = "rope_parameters"
_ONE = np.float32(1)
_F32_MAX = float(np.finfo(np.float32).max)
_KEYS = words(
    """
    attention_factor beta_fast beta_slow factor finetuned high_freq_factor long_factor low_freq_factor mscale
    mscale_all_dim original_max_position_embeddings partial_rotary_factor rope_theta rope_type short_factor truncate
    type
    """
)
_SCALED = ("llama3", "yarn", "longrope")  # variants that know an original context


@dataclass(frozen=True)
class Rotary:
    """What the engine needs: float32 inverse frequencies, a factor on cosines and sines, the context they hold for."""

    inv_freq: tuple[float, ...]
    scale: float
    context: int


def rotary(config: dict[str, Any], head_dim: int, partial: float = 1.0) -> Rotary:
    """Reads the rotary embedding of a checkpoint; the old layout (`rope_scaling`, `rope_theta`) and the new one.

    Args:
        config: Content of config.json.
        head_dim: Dimensions of a head that are rotated, even.
        partial: The share of a head that they are, which is all that the config may ask for.

    Raises:
        GossamerError: a key is missing, has a bad value, or asks for a variant that is not supported.
    """
    parameters = _parameters(config)
    context = integer(config, "max_position_embeddings", 2048)
    keys.unread(parameters, _KEYS, _WHERE)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str) or kind not in _VARIANTS:
        raise GossamerError(f"{_WHERE}: rope_type {kind!r:.80} is not supported; there are: {', '.join(_VARIANTS)}")
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind == "proportional" and partial != 1:
        raise GossamerError(f"{_WHERE}: rope_type 'proportional' of a part of each head is not supported")
    if kind != "proportional" and share not in (None, partial):
        raise GossamerError(f"{_WHERE}: partial_rotary_factor is not supported")
    theta = number(parameters, "rope_theta", number(config, "rope_theta", 10000.0), _WHERE)
    if theta <= 1:
        raise GossamerError(f"{_WHERE}: rope_theta must be above 1, got {theta}")
    trained = context
    if kind in _SCALED:
        trained = original(config, parameters, context)
    try:
        with np.errstate(all="ignore"):  # what is not finite is found below
            powers = theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)).astype(np.float64)
            variant = _Variant(parameters, powers.astype(np.float32), theta, context, trained)
            inv_freq, scale = _VARIANTS[kind](variant)
    except (ArithmeticError, ValueError) as error:
        raise GossamerError(f"{_WHERE}: rope_type {kind} cannot be computed from these values: {error}") from None
    if not (np.isfinite(inv_freq).all() and 0 < scale < _F32_MAX):
        raise GossamerError(f"{_WHERE}: these values give frequencies or a scale that are not finite")
    return Rotary(tuple(inv_freq.tolist()), scale, min(context, trained) if kind == "longrope" else context)


def original(config: dict[str, Any], parameters: dict[str, Any], default: int | None) -> int:
    """Returns the context before scaling, of rotary parameters or beside them, which wins, as in transformers."""
    holder = config if config.get("original_max_position_embeddings") is not None else parameters
    return integer(holder, "original_max_position_embeddings", default)


def partial_rotary(config: dict[str, Any], head_dim: int, default: float) -> Rotary:
    """Reads the rotary embedding of a checkpoint that rotates a part of each head.

    Args:
        config: Content of config.json.
        head_dim: Dimensions of a head.
        default: The share of them that is rotated, where the config does not say.

    Raises:
        GossamerError: as `rotary`, or the share is above 1 or gives an odd number of dimensions.
    """
    name = "partial_rotary_factor"
    if default != 1 and config.get(name, default) is None:
        raise GossamerError(f"{name} must be a number above 0, got None")  # the whole head elsewhere
    share = default
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict) and parameters.get(name) is not None:
        _refuse_scaling_beside(config)
    for holder in (parameters, config.get("rope_scaling"), config):
        if isinstance(holder, dict) and holder.get(name) is not None:
            share = number(holder, name)
            if share > 1:
                raise GossamerError(f"{name} must be at most 1, got {share}")
            break
    dims = int(head_dim * share)
    if dims % 2:
        raise GossamerError(f"the part of a head that is rotated must be even, got {dims}")
    return rotary(config, dims, share)


def of_kind(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Returns a config with the rotary parameters of one kind of layers, where it has them by kind.

    Raises:
        GossamerError: it has some that are of no kind, or others beside those.
    """
    parameters = config.get("rope_parameters")
    own = parameters.get(kind) if isinstance(parameters, dict) else None
    for given in (own, config.get("rope_scaling")):
        if isinstance(given, dict) and not given.get("truncate", True):
            raise GossamerError("rope_parameters: truncate is not read by kind of layers, got false")
    if not isinstance(parameters, dict) or not parameters:
        return config
    _refuse_scaling_beside(config)
    if not isinstance(own, dict):
        if set(parameters) - {FULL, SLIDING}:
            raise GossamerError(
                f"rope_parameters must be by kind of layers, {FULL} and {SLIDING}, got {parameters!r:.80}"
            )
        return config
    return {**config, "rope_parameters": own}


def _refuse_scaling_beside(config: dict[str, Any]) -> None:
    """Refuses the older key of a config that has the newer one, too."""
    if config.get("rope_scaling"):
        raise GossamerError("rope_scaling beside rope_parameters is not supported, since readers differ about them")


@dataclass(frozen=True)
class _Variant:
    parameters: dict[str, Any]
    powers: NDArray[np.float32]  # theta ** (2j / head_dim)
    theta: float
    context: int
    original: int

    def number(self, key: str, default: float | None = None) -> float:
        return number(self.parameters, key, default, _WHERE)


def _parameters(config: dict[str, Any]) -> dict[str, Any]:
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value:
            if not isinstance(value, dict) or any(isinstance(part, dict) for part in value.values()):
                raise GossamerError(f"{key} must be one object for all layers, got {value!r:.80}")
            return value
    return {}


def _default(variant: _Variant) -> tuple[NDArray[np.float32], float]:
    return _ONE / variant.powers, 1.0


def _dynamic(variant: _Variant) -> tuple[NDArray[np.float32], float]:
    variant.number("factor")
    return _default(variant)  # the base grows only beyond the context


def _linear(variant: _Variant) -> tuple[NDArray[np.float32], float]:
    return (1 / variant.powers) / np.float32(variant.number("factor")), 1.0


def _proportional(variant: _Variant) -> tuple[NDArray[np.float32], float]:
    """The longest waves of all of a head stand still (Gemma 4)."""
    share = variant.number("partial_rotary_factor", 1.0)
    if share > 1:
        raise GossamerError(f"{_WHERE}: partial_rotary_factor must be at most 1, got {share}")
    turned = int(share * 2 * len(variant.powers) // 2)
    inv_freq = np.where(np.arange(len(variant.powers)) < turned, _ONE / variant.powers, np.float32(0))
    return inv_freq / np.float32(variant.number("factor", 1.0)), 1.0


def _llama3(variant: _Variant) -> tuple[NDArray[np.float32], float]:
    """Long waves are stretched by the factor, short ones stay, and those between are blended."""
    factor, low, high = (variant.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise GossamerError(f"{_WHERE}: high_freq_factor must be above low_freq_factor, got {high} and {low}")
    inv_freq = 1 / variant.powers
    waves = np.float32(2 * math.pi) / inv_freq
    blend = (np.float32(variant.original) / waves - np.float32(low)) / np.float32(high - low)
    stretched = inv_freq / np.float32(factor)
    blended = (1 - blend) * inv_freq / np.float32(factor) + blend * inv_freq
    long, short = waves > variant.original / low, waves < variant.original / high
    return np.where(long, stretched, np.where(short, inv_freq, blended)), 1.0


def _yarn(variant: _Variant) -> tuple[NDArray[np.float32], float]:
    """YaRN (Peng et al. 2023): a ramp from kept to stretched frequencies, and a factor on the attention."""
    parameters = variant.parameters
    factor = variant.number("factor", variant.context / variant.original)

    def magnitude(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        scale = variant.number("attention_factor")
    elif parameters.get("mscale") and parameters.get("mscale_all_dim"):
        scale = magnitude(variant.number("mscale")) / magnitude(variant.number("mscale_all_dim"))
    else:
        scale = magnitude()

    dim = 2 * len(variant.powers)

    def bound(turns: float) -> float:
        return dim * math.log(variant.original / (turns * 2 * math.pi)) / (2 * math.log(variant.theta))

    low = bound(variant.number("beta_fast", 32.0) if parameters.get("beta_fast") else 32.0)
    high = bound(variant.number("beta_slow", 1.0) if parameters.get("beta_slow") else 1.0)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32((high - low) or 0.001)
    keep = 1 - np.clip(ramp, 0, 1)
    return (1 / (np.float32(factor) * variant.powers)) * (1 - keep) + (1 / variant.powers) * keep, scale


def _longrope(variant: _Variant) -> tuple[NDArray[np.float32], float]:
    """LongRoPE (Ding et al. 2024), with the factors of the original context."""
    factors = variant.parameters.get("short_factor")
    if not isinstance(factors, list) or len(factors) != len(variant.powers):
        raise GossamerError(f"{_WHERE}: short_factor must be a list of {len(variant.powers)} numbers")
    stretch = np.array([number({"short_factor": value}, "short_factor", None, _WHERE) for value in factors], np.float32)
    factor = variant.number("factor", variant.context / variant.original)
    if variant.parameters.get("attention_factor") is not None:
        scale = variant.number("attention_factor")
    else:
        scale = math.sqrt(1 + math.log(factor) / math.log(variant.original)) if factor > 1 else 1.0
    return _ONE / (stretch * variant.powers), scale


_VARIANTS: dict[str, Callable[[_Variant], tuple[NDArray[np.float32], float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
