"""Gemma 4: heads as wide as their layer has them, values that are keys, and a number for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="transformers' models are the oracle here")
pytest.importorskip("transformers", reason="the oracle")
from family_checks import (
    Config,
    check_description,
    check_engine,
    check_finetunes,
    check_named,
    check_pruned_go_back,
    check_pruned_packed_and_run,
    check_trains,
)
from gossamer.checkpoints import open_checkpoint
from tiny import made

DENSE: Config = {
    "model_type": "gemma4_text", "hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "global_head_dim": 24, "num_global_key_value_heads": 1,
    "attention_k_eq_v": True, "intermediate_size": 80, "vocab_size": 320, "max_position_embeddings": 128,
    "sliding_window": 7, "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 0,
}  # fmt: skip
WIDE = {"rope_type": "proportional", "partial_rotary_factor": 2.0}
CASES: dict[str, Config] = {
    "dense": DENSE,
    "odd": {
        **DENSE, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 10, "global_head_dim": 14,
        "num_attention_heads": 3, "attention_bias": True, "tie_word_embeddings": False, "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "final_logit_softcapping": None, "use_bidirectional_attention": "vision",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
            "full_attention": {
                "rope_type": "proportional", "factor": 1.5, "partial_rotary_factor": 0.5, "rope_theta": 500.0
            },
        },
    },
    "whole": {
        "model_type": "gemma4", "text_config": DENSE, "audio_config": None, "vision_config": {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16,
        },
    },
}  # fmt: skip


def moved(model: Any) -> None:
    """Numbers of layers are no parameters there, and begin with one; the scale of scores is in norms of queries."""
    for index, layer in enumerate(getattr(model.model, "language_model", model.model).layers):
        layer.layer_scalar.fill_(0.6 + 0.2 * index)
        layer.self_attn.q_norm.weight.data *= layer.self_attn.head_dim**-0.5


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return made(tmp_path / "model", CASES[request.param], change=moved)


every = pytest.mark.parametrize("folder", CASES, indirect=True)


@every
def test_descriptions_are_those_of_transformers(folder: Path) -> None:
    check_description(folder, 40)


@every
def test_pruned_go_back(folder: Path, tmp_path: Path) -> None:
    check_pruned_go_back(folder, tmp_path / "pruned")


@every
def test_the_engine_has_their_logits(folder: Path) -> None:
    check_engine(folder, 40)


@every
def test_they_train(folder: Path) -> None:
    check_trains(folder, 30)


@pytest.mark.parametrize("folder", ["dense"], indirect=True)
def test_a_finetuned_one_goes_back(folder: Path, tmp_path: Path) -> None:
    check_finetunes(folder, tmp_path)


@pytest.mark.parametrize(("folder", "pattern"), [("dense", (2, 4)), ("odd", None)], indirect=["folder"])
def test_pruned_and_packed_run(folder: Path, tmp_path: Path, pattern: tuple[int, int] | None) -> None:
    check_pruned_packed_and_run(folder, tmp_path, pattern)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"enable_moe_block": True}, "enable_moe_block"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all'"),
        ({"per_layer_config": {"9": {}}}, "per_layer_config: '9' is no layer of 6"),
        ({"per_layer_config": {"1": {"sliding_window": 4}}}, "per_layer_config: 1: sliding_window is not supported"),
        ({"per_layer_config": [3]}, "per_layer_config must be an object of objects"),
        ({"num_global_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"rope_parameters": {"sliding_attention": {}, "full_attention": WIDE}}, "partial_rotary_factor must be at"),
        ({"query_pre_attn_scalar": 3}, "query_pre_attn_scalar"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_refused_by_name(change: Config, words: str) -> None:
    check_named({**DENSE, **change}, words)
    check_named({"model_type": "gemma4", "text_config": {**DENSE, **change}}, words)


def test_a_whole_one_has_a_text_and_is_told_to_be_more(tmp_path: Path) -> None:
    check_named({"model_type": "gemma4", "text_config": 3}, "text_config must be an object, got 3")
    notes = open_checkpoint(made(tmp_path / "model", CASES["whole"])).notes
    assert any("without model.vision_tower, model.embed_vision" in note for note in notes)
