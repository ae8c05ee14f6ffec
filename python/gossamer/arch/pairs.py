"""What encoders and decoders whose configs have BART's keys read alike; what is their own stands in their modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import keys
from .fields import activation, flag, integer, quotient, single, words
from .sources import ENCODER, Source, place
from .spec import (
    MOST_LAYERS,
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Learned,
    Mlp,
    Norm,
    Sinusoids,
    Stack,
    Transformer,
    attention_scale,
)

PREFIX = "model."
KEYS = words(
    """
    activation_dropout activation_function classif_dropout classifier_dropout d_model decoder_attention_heads
    decoder_ffn_dim decoder_layerdrop decoder_layers decoder_start_token_id dropout encoder_attention_heads
    encoder_ffn_dim encoder_layerdrop encoder_layers final_logits_bias forced_eos_token_id init_std is_encoder_decoder
    max_position_embeddings scale_embedding tie_word_embeddings vocab_size
    """
)
_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
NORM = Norm("layer", 1e-5, bias=True)
QVO = ("q", "v", "o")
_ATTENTION = {**{name: f"{{}}.{name}_proj" for name in "qkv"}, "o": "{}.out_proj"}
_INSIDE = {
    **{name: stored.format("self_attn") for name, stored in _ATTENTION.items()},
    **{f"cross_{name}": stored.format("encoder_attn") for name, stored in _ATTENTION.items()},
    "up": "fc1",
    "down": "fc2",
    **dict.fromkeys(("attn_norm", "attn_after_sum"), "self_attn_layer_norm"),
    **dict.fromkeys(("cross_norm", "cross_after_sum"), "encoder_attn_layer_norm"),
    **dict.fromkeys(("mlp_norm", "mlp_after_sum"), "final_layer_norm"),
}


def defaults(layers: int, heads: int, width: int, **others: Any) -> dict[str, Any]:
    """Returns what holds where a config does not say it: sizes of both sides, and others."""
    sizes = {"layers": layers, "attention_heads": heads, "ffn_dim": width}
    return others | {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sizes.items()}


def plain(config: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with every key under one name, and what it may leave out.

    Raises:
        GossamerError: two names of a key say different things.
    """
    return {**others, **keys.plainly(config, _NAMES)}


def unread(config: dict[str, Any], known: frozenset[str] = KEYS, same: Mapping[str, float] | None = None) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(keys.plainly(config, _NAMES), known, same=same)


def pair(
    config: dict[str, Any],
    encoder: Embedding,
    decoder: Embedding,
    contexts: tuple[int, int],
    *,
    before: bool,
    biases: tuple[str, ...] = ("q", "k", "v", "o"),
) -> Transformer:
    """Puts an encoder and a decoder together.

    Args:
        config: Content of config.json.
        encoder: The way into the encoder.
        decoder: The way into the decoder.
        contexts: Of both.
        before: Whether norms are before what reads, and one behind the last block; or behind sums.
        biases: Linears of attentions that have a bias.

    Raises:
        GossamerError: a key is missing or unsupported.
    """
    hidden, vocab = integer(config, "d_model"), integer(config, "vocab_size")
    act = activation(config, "activation_function", "gelu")

    def branch(mixer: Attention | Mlp) -> Branch:
        return Branch(mixer, NORM if before else None, after_sum=None if before else NORM)

    def side(name: str) -> Stack:
        heads = integer(config, f"{name}_attention_heads")
        dim = quotient("d_model", hidden, f"{name}_attention_heads", heads)
        causal = name == "decoder"
        own = Attention(heads, heads, dim, attention_scale(dim), None, biases, causal=causal)
        cross = [replace(own, causal=False, reads="memory")] if causal else []
        mlp = Mlp(integer(config, f"{name}_ffn_dim"), act, gated=False, biases=("up", "down"))
        layers = integer(config, f"{name}_layers", most=MOST_LAYERS)
        mixers: list[Attention | Mlp] = [own, *cross, mlp]
        block = Block(tuple(map(branch, mixers)))
        return Stack((block,), (0,) * layers, NORM if before else None)

    head = Head(flag(config, "tie_word_embeddings", True), bias=flag(config, "final_logits_bias"))
    reads = Transformer(hidden, 1 if encoder.mel else vocab, contexts[0], encoder, side("encoder"), None)
    return Transformer(hidden, vocab, contexts[1], decoder, side("decoder"), head, reads)


def scale(config: dict[str, Any], default: bool = False) -> float:
    """Returns the factor on rows of the embedding."""
    return single(math.sqrt(integer(config, "d_model"))) if flag(config, "scale_embedding", default) else 1.0


def learned(config: dict[str, Any], count: int, offset: int, norm: Norm | None = None) -> Embedding:
    """Returns the way into a decoder, with so many learned positions."""
    return Embedding(Learned(count + offset, offset), scale(config), norm=norm)


def sinusoids(config: dict[str, Any], offset: int, steps: int, default: bool) -> Embedding:
    """Returns the way into a decoder whose frequencies fall from 1 to 1/10000 in so many steps."""
    half = integer(config, "d_model") // 2
    if half * 2 != integer(config, "d_model"):
        raise GossamerError(f"d_model {config['d_model']} is odd")
    frequencies = tuple(single(math.exp(-math.log(10000) * index / max(steps, 1))) for index in range(half))
    return Embedding(Sinusoids(frequencies, offset), scale(config, default))


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    shape = (1, integer(config, "vocab_size"))
    return {"final_logits_bias": {"head.bias": Source("final_logits_bias", shape, index=0)}}


def placed(config: dict[str, Any], outline: Transformer, embed: str, head: str = "lm_head") -> dict[str, Source]:
    """Returns where the tensors lie.

    Args:
        config: Content of config.json.
        outline: The description.
        embed: Stored name of the decoder's embedding, and of the encoder's where that has it, too.
        head: Stored name of the head.
    """

    def side(described: Transformer, name: str) -> dict[str, Source]:
        ends = {
            "embed": embed,
            "positions": f"model.{name}.embed_positions",
            "embed_norm": f"model.{name}.layernorm_embedding",
            "norm": f"model.{name}.layer_norm",
            "conv1": f"model.{name}.conv1",
            "conv2": f"model.{name}.conv2",
            "head": head,
        }
        return place(described, ends, f"model.{name}.layers.{{}}.", _INSIDE)

    assert outline.encoder is not None
    found = {ENCODER + name: source for name, source in side(outline.encoder, "encoder").items()}
    found |= side(outline, "decoder")
    for name in ("encoder.conv1", "encoder.conv2"):
        if name in found:
            rows, cols = found[name].shape
            found[name] = replace(found[name], shape=(rows, cols // 3, 3), flat=True)
    if "head.bias" in found:
        found |= biases(config)["final_logits_bias"]
    return found
