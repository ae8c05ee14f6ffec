"""Tiny seeded models of many families of `transformers`, and what goes into and comes out of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import gossamer.torch as gt

U = 2.0**-24

VOCAB = 259

TOKENS = 12

# Class of the model and what its config is made of; sizes are odd on purpose where the family allows it.
DECODER = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 60,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

LLAMA = {**ENCODER, **DECODER, "num_key_value_heads": 2, "intermediate_size": 172, "hidden_size": 64}

VISION = {"image_size": 24, "patch_size": 8}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "mixtral": ("MixtralForCausalLM", {**LLAMA, "num_local_experts": 4, "intermediate_size": 48}),
    "mpt": ("MptForCausalLM", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, **DECODER}),
    "opt": (
        "OPTForCausalLM",
        {**DECODER, "hidden_size": 60, "ffn_dim": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 36, "max_position_embeddings": 64},
    ),
    "falcon": (
        "FalconForCausalLM",
        {**DECODER, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "tie_word_embeddings": False},
    ),
    "gpt2": ("GPT2LMHeadModel", {**DECODER, "n_embd": 60, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "t5": (
        "T5ForConditionalGeneration",
        {**DECODER, "d_model": 60, "d_kv": 12, "d_ff": 100, "num_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**DECODER, "d_model": 60, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 100}
        | {"decoder_ffn_dim": 100, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 20}
        | {"max_source_positions": 15, "max_target_positions": 64, "decoder_start_token_id": 1}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
    ),
    "vit": ("ViTForImageClassification", {**ENCODER, **VISION, "num_labels": 7}),
    "bert": ("BertModel", ENCODER),
    "deberta-v2": (
        "DebertaV2Model",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
    ),
    "clip": (
        "CLIPModel",
        {"text_config": {**ENCODER, "eos_token_id": 2}, "vision_config": {**ENCODER, **VISION}, "projection_dim": 33},
    ),
}

PRUNED = {"50%": ({"sparsity": 0.5}, "bitmap"), "2:4": ({"pattern": (2, 4)}, "nm")}


def build(family: str) -> nn.Module:
    """The model with seeded weights of a size at which every layer matters and no output is like another."""
    kind, fields = FAMILIES[family]
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**fields)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = parameter.shape[1:].numel() if parameter.dim() == 4 else parameter.shape[-1]
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
            elif not parameter.any():  # biases
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if hasattr(model, "generation_config"):
        model.generation_config.eos_token_id = None
    return model


def inputs(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, VOCAB, (2, 9), generator=generator)
    ids[:, -1] = 2
    pixels = torch.randn(2, 3, 24, 24, generator=generator)
    if family == "vit":
        return {"pixel_values": pixels}
    if family == "clip":
        return {"input_ids": ids, "pixel_values": pixels}
    if family == "whisper":
        return {"input_features": torch.randn(2, 20, 30, generator=generator), "decoder_input_ids": ids}
    if family == "t5":
        return {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pruned(family: str, how: str) -> nn.Module:
    model = build(family)
    gt.prune_linears(model, method="magnitude", **PRUNED[how][0])
    return model


def outputs(model: nn.Module, given: dict[str, Tensor]) -> list[Tensor]:
    """Every tensor that the model returns, in float64."""
    with torch.no_grad():
        found = model(**given).to_tuple()
    return [tensor.double() for tensor in found if isinstance(tensor, Tensor)]
