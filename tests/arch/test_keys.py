"""Keys of config.json that were changed by hand, the weights as they are: they mean what they mean to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")

from family_checks import Config, check_named, near, read, theirs
from gossamer import arch
from pair_checks import check_pair, made_pair
from reference_model import ReferenceModel
from tiny import made

SIZES: Config = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
GEMMA2: Config = {"model_type": "gemma2", **SIZES, "head_dim": 12, "query_pre_attn_scalar": 16}
GRANITE: Config = {"model_type": "granitemoe", **SIZES, "num_local_experts": 3, "num_experts_per_tok": 2}
T5: Config = {
    "model_type": "t5", "vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4,
}  # fmt: skip
M2M: Config = {
    "model_type": "m2m_100", "vocab_size": 320, "d_model": 48, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 90,
}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu"}


def changed(folder: Path, change: dict[str, Any]) -> Path:
    """Writes other keys; None removes one."""
    values = json.loads((folder / "config.json").read_text()) | change
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (GEMMA2, {"hidden_activation": "gelu"}),
        ({"model_type": "olmo3", **SIZES}, {"rope_parameters": None}),
        ({"model_type": "olmo3", **SIZES}, {"rope_parameters": None, "rope_theta": None}),
    ],
)
def test_decoders(config: Config, change: dict[str, Any], tmp_path: Path) -> None:
    folder = changed(made(tmp_path / "model", config), change)
    described, values = read(folder)
    ids = np.random.default_rng(0).integers(0, 320, 30)
    near(ReferenceModel(described, values).logits(ids), theirs(folder, ids), 1e-5)


def test_experts_have_the_activation_that_is_named() -> None:
    for name in ("relu", "silu", "gelu"):
        config = {**GRANITE, "hidden_act": name}
        mixers = [branch.mixer for block in arch.family(config).describe(config).blocks for branch in block.branches]
        assert [mixer.expert.activation for mixer in mixers[1::2]] == [name, name]


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (T5, {"dense_act_fn": "silu"}),
        (T5, {"feed_forward_proj": "gelu"}),  # the other keys, which are stored, say relu
        (GATED, {"feed_forward_proj": None}),
        (GATED, {"dense_act_fn": "gelu"}),
        (GATED, {"dense_act_fn": None, "is_gated_act": None}),
        (M2M, {"pad_token_id": 0}),
        (M2M, {"pad_token_id": 3}),
    ],
)
def test_pairs(config: Config, change: dict[str, Any], tmp_path: Path) -> None:
    check_pair(changed(made_pair(tmp_path / "model", config), change))


BY_KIND = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "olmo", **SIZES, "sliding_window": 5}, "sliding_window is not supported, got 5"),
        (
            {"model_type": "olmoe", **SIZES, "num_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5},
            "sliding_window is not supported, got 5",
        ),
        (
            {"model_type": "gemma3_text", **SIZES, "head_dim": 16, "rope_parameters": LINEAR},
            "rope_parameters must be by kind of layers, full_attention and sliding_attention",
        ),
        (
            {"model_type": "olmo3", **SIZES, "rope_parameters": BY_KIND, "rope_scaling": LINEAR},
            "rope_scaling beside rope_parameters is not supported",
        ),
        (
            {
                "model_type": "stablelm", **SIZES, "rope_scaling": LINEAR,
                "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
            },
            "rope_scaling beside rope_parameters is not supported",
        ),
    ],
)  # fmt: skip
def test_what_readers_differ_about_is_named(config: Config, words: str) -> None:
    check_named(config, words)


NEOX: Config = {"model_type": "gpt_neox", **{key: SIZES[key] for key in SIZES if key != "num_key_value_heads"}}
MINISTRAL: Config = {
    "model_type": "ministral3", **SIZES, "head_dim": 12,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.5,
    },
}  # fmt: skip
GPT_OSS: Config = {
    "model_type": "gpt_oss", **SIZES, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8,
}  # fmt: skip
SIDES: Config = {**M2M, "model_type": "marian", "encoder_layers": 2}
GEMMA: Config = {"model_type": "gemma", **SIZES, "head_dim": 12}
BLOOM: Config = {"model_type": "bloom", "vocab_size": 320, "hidden_size": 48, "n_layer": 2, "n_head": 4}
MPT: Config = {"model_type": "mpt", "vocab_size": 320, "d_model": 48, "n_layers": 2, "n_heads": 4}


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (NEOX, {"rope_parameters": None, "rotary_emb_base": 300.0, "rotary_pct": 0.5}),
        (NEOX, {"rope_parameters": {"rope_theta": 300.0}, "rotary_emb_base": 500.0, "rotary_pct": 0.5}),
        (NEOX, {"rope_parameters": {"rope_theta": 300.0, "partial_rotary_factor": 0.5}, "rope_theta": 500.0}),
        (MINISTRAL, {"original_max_position_embeddings": 8}),
        (MINISTRAL, {"rope_scaling": {**MINISTRAL["rope_parameters"], "llama_4_scaling_beta": 0.9}}),
        (GEMMA2, {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": None}),
        ({**BLOOM, "n_head": 3}, {"num_attention_heads": 3, "num_hidden_layers": 2, "n_layer": None}),
    ],
)
def test_names_that_families_have_of_their_own(config: Config, change: dict[str, Any], tmp_path: Path) -> None:
    test_decoders(config, change, tmp_path)


def test_empty_rotary_parameters_are_no_scaling() -> None:
    plain = {"rope_type": "default", "rope_theta": 150000.0}
    empty, spelled = ({**GPT_OSS, "rope_parameters": rope} for rope in ({}, plain))
    assert arch.family(empty).describe(empty) == arch.family(spelled).describe(spelled)
    assert arch.family(empty).describe(empty) != arch.family(GPT_OSS).describe(GPT_OSS)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**NEOX, "rope_theta": 300.0}, "rope_theta 300.0 contradicts rotary_emb_base 10000.0"),
        ({**NEOX, "partial_rotary_factor": 1.0}, "partial_rotary_factor 1.0 contradicts rotary_pct 0.25"),
        (
            {**NEOX, "rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
            "rope_type 'proportional' of a part of each head is not supported",
        ),
        ({**GEMMA2, "hidden_act": "silu"}, "hidden_act 'silu' contradicts hidden_activation 'gelu_pytorch_tanh'"),
        ({**GEMMA, "hidden_activation": "gelu"}, "hidden_act 'gelu_pytorch_tanh' contradicts hidden_activation 'gelu'"),
        ({**BLOOM, "num_attention_heads": 8}, "num_attention_heads 8 contradicts n_head 4"),
        ({**BLOOM, "n_embed": 24}, "n_embed 24 contradicts hidden_size 48"),
        ({**BLOOM, "slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact true is not supported"),
        ({**SIDES, "num_hidden_layers": 1}, "num_hidden_layers 1 contradicts encoder_layers 2"),
        ({**MPT, "attn_config": {"alibi_bias_max": 16}}, "attn_config: alibi_bias_max 16.0 is not supported"),
        ({**T5, "scale_decoder_outputs": None}, "scale_decoder_outputs must be true or false, got None"),
        (
            {"model_type": "glm4", **SIZES, "head_dim": 12, "partial_rotary_factor": None},
            "partial_rotary_factor must be a number above 0, got None",
        ),
        (
            {"model_type": "gemma3_text", **SIZES, "head_dim": 12, "_sliding_window_pattern": 2},
            "_sliding_window_pattern 2 contradicts sliding_window_pattern 6",
        ),
        ({"model_type": "modernbert", **SIZES, "sliding_window": 0}, "sliding_window is not supported, got 0"),
        ({"model_type": "olmo3", **SIZES, "rope_theta": 10000.0}, "rope_theta 10000.0 is not supported: of all layers"),
        (
            {"model_type": "olmo3", **SIZES, "rope_scaling": {**LINEAR, "rope_type": "yarn", "truncate": False}},
            "rope_parameters: truncate is not read by kind of layers, got false",
        ),
        ({"model_type": "llama", **SIZES, "is_causal": None}, "is_causal is not supported, got None"),
        (
            {"model_type": "qwen3_moe", **SIZES, "num_experts": 4, "num_local_experts": 8},
            "num_local_experts 8 contradicts num_experts 4",
        ),
    ],
)
def test_keys_that_only_one_reader_hears_are_named(config: Config, words: str) -> None:
    check_named(config, words)
