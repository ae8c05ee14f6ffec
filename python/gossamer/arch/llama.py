"""The Llama family: RMS norms, rotary positions, grouped-query attention, gated SiLU MLP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import GossamerError
from . import keys
from .fields import flag, integer, number, words
from .rope import rotary
from .spec import DecoderConfig

_ATTENTION = ("q", "k", "v", "o")
_MOST_LAYERS = 4096
_MLP = ("gate", "up", "down")
_BIASES = {"attention_bias": ("self_attn", _ATTENTION), "mlp_bias": ("mlp", _MLP)}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_KEYS = words(
    """
    attention_bias head_dim hidden_act hidden_size intermediate_size layer_types max_position_embeddings
    max_window_layers mlp_bias num_attention_heads num_hidden_layers num_key_value_heads
    original_max_position_embeddings partial_rotary_factor rms_norm_eps rope_parameters rope_scaling rope_theta
    sliding_window tie_word_embeddings use_sliding_window vocab_size
    """
)


@dataclass(frozen=True)
class _Sizes:
    """What the shapes of tensors follow from."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool


def _sizes(config: dict[str, Any]) -> _Sizes:
    """The sizes alone: nothing here takes memory, so that they can be held against what is stored first."""
    heads = integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    hidden = integer(config, "hidden_size")
    head_dim = integer(config, "head_dim", max(hidden // heads, 1))
    if config.get("head_dim") is None and hidden % heads:
        raise GossamerError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if heads % kv_heads:
        raise GossamerError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2:
        raise GossamerError(f"the width of a head must be even, got {head_dim}")
    return _Sizes(
        hidden=hidden,
        layers=integer(config, "num_hidden_layers", most=_MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size"),
        tied=flag(config, "tie_word_embeddings"),
    )


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Maps config.json; see `gossamer.arch.Family`."""
    sizes = _sizes(config)
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):  # two names of one function
        raise GossamerError(f"hidden_act {activation!r:.80} is not supported; there is: silu")
    unread(config)
    positions = rotary(config, sizes.head_dim)
    return DecoderConfig(
        **asdict(sizes),
        context=min(positions.context, _window(config) or positions.context),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        inv_freq=positions.inv_freq,
        rope_scale=positions.scale,
    )


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    heads = integer(config, "num_attention_heads")
    head_dim = integer(config, "head_dim", max(integer(config, "hidden_size") // heads, 1))
    return keys.unread(config, _KEYS, same={"attention_multiplier": head_dim**-0.5, "query_pre_attn_scalar": head_dim})


def _window(config: dict[str, Any]) -> int | None:
    """The sliding window that a config asks for: inside it attention is the full one, and there the context ends."""
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind not in (_FULL, _SLIDING) for kind in kinds)):
        raise GossamerError(f"layer_types must be a list of {_FULL} and {_SLIDING}, got {kinds!r:.80}")
    if kinds and _SLIDING in kinds:
        return integer(config, "sliding_window")
    if kinds or config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return None
    return integer(config, "sliding_window")


def biases(config: dict[str, Any]) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    every = tensors({**config, **dict.fromkeys(_BIASES, True)})
    return {
        key: {name: tensor for name, tensor in every.items() if tensor[0].endswith("bias") and f".{part}." in tensor[0]}
        for key, (part, _) in _BIASES.items()
    }


def tensors(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    sizes = _sizes(config)
    hidden, inner = sizes.hidden, sizes.intermediate
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    linears = {
        "q": (query, hidden),
        "k": (key, hidden),
        "v": (key, hidden),
        "o": (hidden, query),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    found: dict[str, tuple[str, tuple[int, ...]]] = {"embed": ("model.embed_tokens.weight", (sizes.vocab, hidden))}
    for layer in range(sizes.layers):
        own, stored = f"layers.{layer}.", f"model.layers.{layer}."
        for bias, (part, names) in _BIASES.items():
            for name in names:
                found[f"{own}{name}"] = (f"{stored}{part}.{name}_proj.weight", linears[name])
                if flag(config, bias):
                    found[f"{own}{name}.bias"] = (f"{stored}{part}.{name}_proj.bias", linears[name][:1])
        found[f"{own}attn_norm"] = (f"{stored}input_layernorm.weight", (hidden,))
        found[f"{own}mlp_norm"] = (f"{stored}post_attention_layernorm.weight", (hidden,))
    found["norm"] = ("model.norm.weight", (hidden,))
    if not sizes.tied:
        found["head"] = ("lm_head.weight", (sizes.vocab, hidden))
    return found
