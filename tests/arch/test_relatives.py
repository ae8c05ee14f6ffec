"""Families with other norms, MLPs, scales or caps than Llama's, from OPT to Gemma: what each of them has to do."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")
from family_checks import (
    Config,
    check_description,
    check_engine,
    check_named,
    check_pruned_go_back,
    check_pruned_packed_and_run,
    check_trains,
)
from tiny import made

SIZES: Config = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": 320, "max_position_embeddings": 128,
}  # fmt: skip
ODD: Config = {**SIZES, "num_key_value_heads": 1, "attention_bias": True}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
BY_KIND = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}
OPT: Config = {
    "model_type": "opt", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 80,
    "vocab_size": 320, "max_position_embeddings": 64, "word_embed_proj_dim": 48,
}  # fmt: skip
BLOOM: Config = {"model_type": "bloom", "hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": 320}
FALCON: Config = {
    "model_type": "falcon", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
    "max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, Config] = {
    "opt": OPT,
    "opt odd": {
        **OPT, "word_embed_proj_dim": 20, "do_layer_norm_before": False, "activation_function": "gelu",
        "num_attention_heads": 3,
    },
    "opt bare": {**OPT, "enable_bias": False, "_remove_final_layer_norm": True, "tie_word_embeddings": False},
    "bloom": BLOOM,
    "bloom odd": {**BLOOM, "n_head": 6, "tie_word_embeddings": False},
    "falcon": FALCON,
    "falcon old": {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "tie_word_embeddings": False},
    "falcon groups": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 80},
    "falcon one norm": {
        **FALCON, "new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1, "bias": True,
        "rope_parameters": LINEAR,
    },
    "starcoder2": {"model_type": "starcoder2", **SIZES},
    "starcoder2 odd": {
        "model_type": "starcoder2", **SIZES, "num_key_value_heads": 1, "use_bias": False, "sliding_window": 7,
        "tie_word_embeddings": False, "hidden_act": "silu", "rope_parameters": LINEAR,
    },
    "stablelm": {"model_type": "stablelm", **SIZES, "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    "stablelm odd": {
        "model_type": "stablelm", **SIZES, "num_key_value_heads": 1, "hidden_size": 32, "qk_layernorm": True,
        "use_parallel_residual": True, "use_qkv_bias": True, "tie_word_embeddings": True,
    },
    "gemma": {"model_type": "gemma", **SIZES, "head_dim": 16},
    "gemma odd": {
        "model_type": "gemma", **ODD, "head_dim": 10, "hidden_act": "gelu", "tie_word_embeddings": False,
        "rope_parameters": LINEAR,
    },
    "gemma2": {"model_type": "gemma2", **SIZES, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16},
    "gemma2 odd": {
        "model_type": "gemma2", **ODD, "num_hidden_layers": 3, "head_dim": 10, "sliding_window": 3,
        "query_pre_attn_scalar": 7, "attn_logit_softcapping": None, "final_logit_softcapping": 5.0,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"], "tie_word_embeddings": False,
    },
    "gemma3": {"model_type": "gemma3_text", **SIZES, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 7},
    "gemma3 odd": {
        "model_type": "gemma3_text", **ODD, "num_hidden_layers": 3, "head_dim": 10, "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"], "rope_parameters": BY_KIND,
        "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 9,
    },
    "olmo2": {"model_type": "olmo2", **SIZES},
    "olmo2 odd": {"model_type": "olmo2", **ODD, "tie_word_embeddings": True, "rope_parameters": LINEAR},
    "olmo3": {"model_type": "olmo3", **SIZES, "num_hidden_layers": 4, "sliding_window": 6},
    "olmo3 odd": {
        "model_type": "olmo3", **ODD, "sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": BY_KIND, "tie_word_embeddings": True,
    },
    "granite": {
        "model_type": "granite", **SIZES, "attention_multiplier": 0.1, "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22, "logits_scaling": 8.0,
    },
    "granite odd": {
        "model_type": "granite", **ODD, "mlp_bias": True, "tie_word_embeddings": True, "logits_scaling": 3.0,
        "rope_parameters": LINEAR,
    },
    "glm4": {"model_type": "glm4", **SIZES, "head_dim": 12, "partial_rotary_factor": 0.5},
    "glm4 odd": {
        "model_type": "glm4", **ODD, "attention_bias": False, "head_dim": 16, "tie_word_embeddings": True,
        "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.25},
    },
    "cohere2": {"model_type": "cohere2", **SIZES, "num_hidden_layers": 4, "sliding_window": 6},
    "cohere2 odd": {
        "model_type": "cohere2", **ODD, "sliding_window": 3, "logit_scale": 0.3, "tie_word_embeddings": False,
        "layer_types": ["full_attention", "sliding_attention"], "rope_parameters": LINEAR,
    },
}  # fmt: skip


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return made(tmp_path / "model", CASES[request.param])


every = pytest.mark.parametrize("folder", CASES, indirect=True)


@every
def test_descriptions_are_those_of_transformers(folder: Path) -> None:
    check_description(folder, 40)


@every
def test_pruned_ones_go_back(folder: Path, tmp_path: Path) -> None:
    check_pruned_go_back(folder, tmp_path / "pruned")


@every
def test_the_engine_gives_their_logits(folder: Path) -> None:
    check_engine(folder, 50)


@every
def test_they_train(folder: Path) -> None:
    check_trains(folder, 20)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("folder", [case for case in CASES if " " not in case], indirect=True)
def test_they_are_pruned_packed_and_run(folder: Path, tmp_path: Path, pattern: tuple[int, int] | None) -> None:
    check_pruned_packed_and_run(folder, tmp_path, pattern)


BAD: dict[str, tuple[str, Config, str]] = {
    "heads": ("opt", {"num_attention_heads": 5}, "hidden_size 48 is not a multiple of num_attention_heads 5"),
    "affine": ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine false"),
    "residual": (
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm is not supported",
    ),
    "alibi": ("falcon", {"alibi": True}, "alibi true is not supported"),
    "groups": ("falcon groups", {"num_kv_heads": 3}, "num_attention_heads 4 is not a multiple of num_kv_heads 3"),
    "in turn": ("falcon groups", {"parallel_attn": False}, "parallel_attn false with new_decoder_architecture"),
    "activation": ("starcoder2", {"hidden_act": "gelu_10"}, "hidden_act 'gelu_10' is not supported"),
    "odd share": ("stablelm", {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.3}}, "must be even, got 3"),
    "two activations": (
        "gemma",
        {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"},
        "hidden_act 'silu' contradicts hidden_activation 'gelu_pytorch_tanh'",
    ),
    "direction": ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
    "kinds": ("gemma2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 2 times"),
    "no window": (
        "gemma2",
        {"sliding_window": None, "layer_types": ["sliding_attention"] * 2},
        "sliding_window is not",
    ),
    "cap": ("gemma3", {"final_logit_softcapping": -1.0}, "final_logit_softcapping must be a number above 0"),
    "clip": ("olmo2", {"clip_qkv": 8.0}, "clip_qkv is not supported"),
    "factor": ("granite", {"residual_multiplier": 0}, "residual_multiplier must be a number above 0"),
    "share": ("glm4", {"partial_rotary_factor": 1.5}, "partial_rotary_factor must be at most 1"),
    "norms": ("cohere2", {"use_qk_norm": True}, "use_qk_norm is not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    base, changes, words = BAD[case]
    check_named({**CASES[base], **changes}, words)
