"""Families with layer norms and plain MLPs, or layer norms alone: OPT, BLOOM, Falcon, StarCoder2, StableLM."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")
from family_checks import (
    Config,
    check_description,
    check_engine,
    check_pruned_go_back,
    check_pruned_packed_and_run,
    check_trains,
    made,
)
from gossamer import arch
from gossamer.errors import GossamerError

OPT: Config = {
    "model_type": "opt", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 80,
    "vocab_size": 320, "max_position_embeddings": 64, "word_embed_proj_dim": 48,
}  # fmt: skip
BLOOM: Config = {"model_type": "bloom", "hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": 320}
FALCON: Config = {
    "model_type": "falcon", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
    "max_position_embeddings": 64,
}  # fmt: skip
SIZES: Config = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": 320, "max_position_embeddings": 128,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
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
    "share": ("stablelm", {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.3}}, "must be even, got 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    base, changes, words = BAD[case]
    config = {**CASES[base], **changes}
    with pytest.raises(GossamerError) as error:
        arch.family(config).describe(config)
    assert words in str(error.value)
