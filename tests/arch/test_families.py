"""Families beside Llama, as tiny seeded models of transformers: the same logits, and weights that go back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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
from gossamer.checkpoints import open_checkpoint
from tiny import made

GPT2 = {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320}
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 100, "vocab_size": 320, "max_position_embeddings": 64,
}  # fmt: skip
HALF = {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}
CASES: dict[str, Config] = {
    "gpt2": GPT2,
    "gpt2 untied": {**GPT2, "tie_word_embeddings": False, "n_inner": 100, "activation_function": "gelu"},
    "gpt_neox": NEOX,
    "gpt_neox tied": {**NEOX, "tie_word_embeddings": True, "hidden_act": "gelu_new", "rope_parameters": HALF},
    "gpt_neox in turn": {**NEOX, "use_parallel_residual": False, "attention_bias": False},
}
EVERY = pytest.mark.parametrize("case", CASES)
LENGTH = 50


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {case: made(root / case, config) for case, config in CASES.items()}


@EVERY
def test_descriptions_are_those_of_transformers(folders: dict[str, Path], case: str) -> None:
    check_description(folders[case], LENGTH)


@EVERY
def test_pruned_ones_go_back(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    check_pruned_go_back(folders[case], tmp_path / "pruned")


@EVERY
def test_the_engine_gives_their_logits(folders: dict[str, Path], case: str) -> None:
    check_engine(folders[case], LENGTH)


@EVERY
def test_they_are_trained(folders: dict[str, Path], case: str) -> None:
    check_trains(folders[case], LENGTH)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("case", ["gpt2", "gpt_neox"])
def test_they_are_pruned_packed_and_run(
    folders: dict[str, Path], tmp_path: Path, case: str, pattern: tuple[int, int] | None
) -> None:
    check_pruned_packed_and_run(folders[case], tmp_path, pattern)


def test_models_that_were_saved_without_a_head(folders: dict[str, Path], tmp_path: Path) -> None:
    whole, base = open_checkpoint(folders["gpt2"]), open_checkpoint(made(tmp_path / "base", CASES["gpt2"], base=True))
    assert "h.0.attn.c_attn.weight" in base.names()
    for name, source in base.sources().items():
        np.testing.assert_array_equal(base.read(source), whole.read(whole.sources()[name]))


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads": ("gpt2", {"n_head": 5}, "n_embd 48 is not a multiple of n_head 5"),
    "activation": ("gpt2", {"activation_function": "tanh"}, "activation_function 'tanh' is not supported"),
    "scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "no scale": ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is not supported"),
    "cross": ("gpt2", {"add_cross_attention": True}, "add_cross_attention is not supported"),
    "share": ("gpt_neox", {"rope_parameters": {**HALF, "partial_rotary_factor": 1.5}}, "must be at most 1, got 1.5"),
    "odd": ("gpt_neox", {"rope_parameters": {**HALF, "partial_rotary_factor": 0.2}}, "must be even, got 3"),
    "gate": ("gpt_neox", {"hidden_act": "mish"}, "hidden_act 'mish' is not supported; there are: silu"),
    "text": ("gpt_neox", {"use_parallel_residual": "yes"}, "use_parallel_residual must be true or false"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    base, changes, words = BAD[case]
    check_named({**CASES[base], **changes}, words)
