"""ModernBERT: rotary positions, gated MLPs, norms before what reads, and windows in two layers of three."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import keys, relatives
from .fields import FULL, SLIDING, activation, flag, integer, number, words
from .relatives import no_biases as biases
from .rope import Rotary, of_kind, rotary
from .sources import Source, place
from .spec import Attention, Block, Branch, Embedding, Mlp, Norm, Stack, Transformer, attention_scale

__all__ = ["PREFIX", "biases", "describe", "sources", "unread"]

PREFIX = "model."
_KEYS = words(
    """
    attention_bias classifier_activation classifier_bias classifier_pooling cls_token_id decoder_bias
    deterministic_flash_attn embedding_dropout global_attn_every_n_layers global_rope_theta hidden_activation
    hidden_size initializer_cutoff_factor intermediate_size layer_types local_attention local_rope_theta
    max_position_embeddings mlp_bias mlp_dropout norm_bias norm_eps num_attention_heads num_hidden_layers
    position_embedding_type reference_compile repad_logits_with_grad rope_parameters rope_scaling
    sparse_pred_ignore_index sparse_prediction tie_word_embeddings vocab_size
    """
)
_ENDS = {"embed": "model.embeddings.tok_embeddings", "embed_norm": "model.embeddings.norm", "norm": "model.final_norm"}
_INSIDE = {
    "attn_norm": "attn_norm",
    **dict.fromkeys("qkv", "attn.Wqkv"),
    "o": "attn.Wo",
    "mlp_norm": "mlp_norm",
    **dict.fromkeys(("gate", "up"), "mlp.Wi"),
    "down": "mlp.Wo",
}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    kind = config.get("position_embedding_type") or "absolute"
    if kind not in ("absolute", "rope", "sans_pos"):
        raise GossamerError(f"position_embedding_type {kind!r:.80} is not supported")
    dim = relatives.head_dim({**config, "head_dim": None})
    wide = {**config, "rope_theta": number(config, "global_rope_theta", 160000.0)}
    near = {**config, "rope_theta": number(config, "local_rope_theta", 10000.0)}
    return _outline(config, [rotary(of_kind(wide, FULL), dim), rotary(of_kind(near, SLIDING), dim)])


def _outline(config: dict[str, Any], turned: list[Rotary] | None) -> Transformer:
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    dim = hidden // heads
    norm = Norm("layer", number(config, "norm_eps", 1e-5), bias=flag(config, "norm_bias"))
    every = integer(config, "global_attn_every_n_layers", 3)
    plain = Attention(
        heads,
        heads,
        dim,
        attention_scale(dim),
        None,
        relatives.QKVO if flag(config, "attention_bias") else (),
        causal=False,
    )
    mlp = Mlp(
        integer(config, "intermediate_size"),
        activation(config, "hidden_activation", "gelu"),
        biases=("gate", "up", "down") if flag(config, "mlp_bias") else (),
    )
    seen = integer(config, "local_attention", 128) // 2 + 1
    blocks = []
    for layer, window in enumerate(relatives.windows(config, lambda layer: layer % every != 0, seen)):
        positions = relatives.rope(turned[window is not None] if turned else None)
        attention = replace(plain, positions=positions, window=window)
        # The first one reads what the embedding's norm gives.
        blocks.append(Block((Branch(attention, norm if layer else None), Branch(mlp, norm))))
    kinds, which = relatives.by_layer(blocks)
    context = integer(config, "max_position_embeddings", 8192)
    if turned:
        context = min(context, *(one.context for one in turned))
    vocab = integer(config, "vocab_size")
    return Transformer(hidden, vocab, context, Embedding(norm=norm), Stack(kinds, which, norm), None)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    relatives.no_windows(config)  # another name of local_attention to transformers, of half of it
    return keys.unread(config, _KEYS)


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = _outline(config, None)
    hidden, width = outline.hidden, integer(config, "intermediate_size")
    fused = {name: (index * hidden, hidden, 3 * hidden) for index, name in enumerate("qkv")}
    fused |= {name: (index * width, width, 2 * width) for index, name in enumerate(("gate", "up"))}
    return place(outline, _ENDS, "model.layers.{}.", _INSIDE, fused=fused)
