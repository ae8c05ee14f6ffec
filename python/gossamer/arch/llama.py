"""The Llama family: RMS norms, rotary positions, grouped-query attention, gated SiLU MLP."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from ..errors import GossamerError
from .fields import flag, integer, number
from .rope import rotary

_ATTENTION = ("q", "k", "v", "o")
_MOST_LAYERS = 4096
_MLP = ("gate", "up", "down")


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Maps config.json; see `gossamer.arch.Family`."""
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
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise GossamerError(f"hidden_act {activation!r:.80} is not supported; there is: silu")
    positions = rotary(config, head_dim)
    return DecoderConfig(
        hidden=hidden,
        layers=integer(config, "num_hidden_layers", most=_MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size"),
        context=positions.context,
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        inv_freq=positions.inv_freq,
        rope_scale=positions.scale,
        tied=flag(config, "tie_word_embeddings"),
    )


def tensors(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    sizes = decoder_config(config)
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
        for part, names, bias in (("self_attn", _ATTENTION, "attention_bias"), ("mlp", _MLP, "mlp_bias")):
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
