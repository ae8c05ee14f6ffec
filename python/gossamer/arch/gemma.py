"""Gemma: Llama with a GELU, heads of their own width, a scaled embedding, and norms whose weights are kept less 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import keys, relatives
from .fields import flag, integer, number, single, words
from .relatives import BLOCKS, ENDS, INSIDE, QK_NORMS, QKVO
from .relatives import no_biases as biases
from .rope import rotary
from .sources import Source, place
from .spec import Attention, Block, Branch, Embedding, Head, Norm, QkNorm, Rope, Transformer, attention_scale

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
KEYS = words(
    """
    attention_bias head_dim hidden_act hidden_activation hidden_size intermediate_size max_position_embeddings
    num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings rms_norm_eps
    rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size
    """
)
DEFAULTS: dict[str, Any] = {"head_dim": 256, "tie_word_embeddings": True, "max_position_embeddings": 8192}
"""What a config of the family may leave out."""
_TANH = "gelu_pytorch_tanh"
SHIFTED = ("attn_norm", "attn_behind", "mlp_norm", "mlp_behind", "norm", "q_norm", "k_norm")
"""Norms whose weights are kept less 1."""


def norm(config: dict[str, Any]) -> Norm:
    """Returns the norm that is everywhere in such a model."""
    return Norm("rms", relatives.epsilon(config))


def attention(config: dict[str, Any], positions: Rope | None, **more: Any) -> Attention:
    """Returns the attention of a layer; `query_pre_attn_scalar` is what stands in its scale for the width of a head."""
    width = relatives.head_dim(config)
    scalar = number(config, "query_pre_attn_scalar", float(width))
    scale = attention_scale(width) if scalar == width else single(scalar**-0.5)
    with_bias = QKVO if flag(config, "attention_bias") else ()
    return replace(relatives.attention(config, width, positions, with_bias, scale), **more)


def decoder(
    config: dict[str, Any], attentions: Sequence[Attention], context: int, *, behind: bool, head: Head | None = None
) -> Transformer:
    """Puts a model together.

    Args:
        config: Content of config.json.
        attentions: Of each layer.
        context: Tokens that a sequence may hold.
        behind: Whether a norm stands behind every mixer, too.
        head: The way out; a plain one by default.
    """
    one = norm(config)
    last = one if behind else None
    key = "hidden_activation" if behind else "hidden_act"
    mlp = relatives.mlp({**config, key: _activation(config, key)}, key=key)
    kinds, which = relatives.by_layer([Block((Branch(each, one, last), Branch(mlp, one, last))) for each in attentions])
    scale = single(integer(config, "hidden_size") ** 0.5)
    return relatives.decoder(config, kinds, one, context, which=which, embedding=Embedding(scale=scale), head=head)


def _activation(config: dict[str, Any], own: str) -> Any:
    """What a config says of the activation under its own name, which must not be other than under the other one."""
    # The first files said gelu, and never meant it.
    said = {"hidden_act": config.get("hidden_act"), "hidden_activation": config.get("hidden_activation")}
    said["hidden_act"] = _TANH if said["hidden_act"] == "gelu" else said["hidden_act"]
    said[own] = _TANH if said[own] is None else said[own]
    if None not in said.values() and said["hidden_act"] != said["hidden_activation"]:
        raise GossamerError("hidden_act {!r:.80} contradicts hidden_activation {!r:.80}".format(*said.values()))
    return said[own]


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    config = {**DEFAULTS, **config}
    turned = rotary(config, relatives.head_dim(config))
    return _outline(config, relatives.rope(turned), turned.context)


def _outline(config: dict[str, Any], positions: Rope | None, context: int) -> Transformer:
    config = {**DEFAULTS, **config}
    return decoder(config, [attention(config, positions)] * relatives.layers(config), context, behind=False)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return placed(_outline(config, None, 1))


def placed(outline: Transformer) -> dict[str, Source]:
    """Returns where the tensors of such a model lie; with norms behind mixers others have other names."""
    inside = INSIDE | QK_NORMS
    if outline.blocks[0].branches[0].behind is not None:
        inside |= {
            "attn_behind": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_behind": "post_feedforward_layernorm",
        }
    return place(outline, ENDS, BLOCKS, inside, plus=SHIFTED)


def qk_norm(config: dict[str, Any]) -> QkNorm:
    """Returns the norms of queries and keys, where there are any."""
    return QkNorm(norm(config))
