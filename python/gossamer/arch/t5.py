"""T5 and Flan-T5: an encoder and a decoder with relative biases, attention that is not scaled, norms without a mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import GossamerError
from . import keys
from .fields import activation, flag, integer, number, single, words
from .relative import relative_bias
from .relatives import no_biases as biases
from .sources import ENCODER, Source, place
from .spec import MOST_LAYERS, Attention, Block, Branch, Embedding, Head, Mlp, Norm, Stack, Transformer

__all__ = ["PREFIX", "biases", "describe", "settle", "sources", "unread"]

PREFIX = ""
_KEYS = words(
    """
    classifier_dropout d_ff d_kv d_model decoder_start_token_id dense_act_fn dropout_rate feed_forward_proj
    initializer_factor is_encoder_decoder is_gated_act layer_norm_epsilon n_positions num_decoder_layers num_heads
    num_layers output_past relative_attention_max_distance relative_attention_num_buckets scale_decoder_outputs
    tie_word_embeddings vocab_size
    """
)
_CONTEXT = 2048  # positions have no end; training saw 512
_ENDS = {"embed": "shared", "head": "lm_head"}
_SELF = {"attn_norm": "layer.0.layer_norm", **{name: f"layer.0.SelfAttention.{name}" for name in "qkvo"}}
_CROSS = {"cross_norm": "layer.1.layer_norm", **{f"cross_{name}": f"layer.1.EncDecAttention.{name}" for name in "qkvo"}}


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    unread(config)
    layers = integer(config, "num_layers", 6, MOST_LAYERS)
    encoder = _side(config, layers, None)
    if config.get("architectures") in (["T5EncoderModel"], ["MT5EncoderModel"]):
        return encoder
    tied = flag(config, "tie_word_embeddings", True)
    if config.get("scale_decoder_outputs", tied) is None:
        raise GossamerError("scale_decoder_outputs must be true or false, got None")
    scaled = flag(config, "scale_decoder_outputs", tied)  # older configs say it by what they tie
    head = Head(tied, scale=single(encoder.hidden**-0.5) if scaled else 1.0)
    encoder = replace(encoder, embedding=Embedding(shared=True))
    return _side(config, integer(config, "num_decoder_layers", layers, MOST_LAYERS), head, encoder)


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    return keys.unread(config, _KEYS)


def settle(config: dict[str, Any]) -> dict[str, Any]:
    """Says by a key of its own what follows from what is tied; see `gossamer.arch.settled`."""
    return {"scale_decoder_outputs": flag(config, "tie_word_embeddings", True), **config}


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    outline = describe(config)
    if outline.encoder is None:
        return _placed(outline, "encoder", False)
    inner = {ENCODER + name: source for name, source in _placed(outline.encoder, "encoder", False).items()}
    return inner | _placed(outline, "decoder", True)


def _side(config: dict[str, Any], layers: int, head: Head | None, encoder: Transformer | None = None) -> Transformer:
    """An encoder, or with a head the decoder of one."""
    hidden, heads, dim = integer(config, "d_model", 512), integer(config, "num_heads", 8), integer(config, "d_kv", 64)
    norm = Norm("rms", number(config, "layer_norm_epsilon", 1e-6))
    count = integer(config, "relative_attention_num_buckets", 32)
    distance = integer(config, "relative_attention_max_distance", 128, most=1 << 16)
    causal = head is not None
    if distance <= count // (2 if causal else 4) or count % 4:
        raise GossamerError(
            f"relative_attention_max_distance {distance} does not go with relative_attention_num_buckets {count}"
        )
    mixers: list[Attention | Mlp] = [
        Attention(heads, heads, dim, 1.0, relative_bias(count, distance, causal), causal=causal)
    ]
    if causal:
        mixers.append(Attention(heads, heads, dim, 1.0, None, causal=False, reads="memory"))
    projection = str(config.get("feed_forward_proj", "relu"))
    gated, _, act = projection.rpartition("-")
    if gated not in ("", "gated"):
        raise GossamerError(f"feed_forward_proj {projection!r:.80} is not supported")
    act = "gelu_new" if gated and act == "gelu" else act
    # What transformers makes of that, it also writes down, and believes where they differ.
    key = "feed_forward_proj" if config.get("dense_act_fn") is None else "dense_act_fn"
    chosen = activation({"feed_forward_proj": act, "dense_act_fn": config.get("dense_act_fn")}, key, "")
    mixers.append(Mlp(integer(config, "d_ff", 2048), chosen, flag(config, "is_gated_act", bool(gated))))
    stack = Stack((Block(tuple(Branch(mixer, norm) for mixer in mixers)),), (0,) * layers, norm)
    return Transformer(hidden, integer(config, "vocab_size", 32128), _CONTEXT, Embedding(), stack, head, encoder)


def _placed(outline: Transformer, side: str, cross: bool) -> dict[str, Source]:
    mlp = f"layer.{2 if cross else 1}"
    gated = any(isinstance(one.mixer, Mlp) and one.mixer.gated for one in outline.blocks[0].branches)
    inside = {
        **_SELF,
        **_CROSS,
        "mlp_norm": f"{mlp}.layer_norm",
        "gate": f"{mlp}.DenseReluDense.wi_0",
        "up": f"{mlp}.DenseReluDense.{'wi_1' if gated else 'wi'}",
        "down": f"{mlp}.DenseReluDense.wo",
    }
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
    ends = {**_ENDS, "norm": f"{side}.final_layer_norm", "relative_bias": bias}
    found = place(outline, ends, f"{side}.block.{{}}.", inside)
    return found | {"relative_bias": found["relative_bias"].inputs_first()}
