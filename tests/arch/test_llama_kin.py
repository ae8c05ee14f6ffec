"""Families that are Llama but for their attentions, and MPT: windows, norms of heads, slopes, clips."""

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
    check_finetunes,
    check_pruned_go_back,
    check_pruned_packed_and_run,
    check_trains,
)
from gossamer import arch
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from tiny import made

SIZES: Config = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": 320, "max_position_embeddings": 128,
}  # fmt: skip
MPT: Config = {"model_type": "mpt", "d_model": 48, "n_heads": 4, "n_layers": 2, "vocab_size": 320, "max_seq_len": 128}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
YARN: Config = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5, "beta_fast": 32.0, "beta_slow": 1.0,
    "max_position_embeddings": 128,
}  # fmt: skip
LONG: Config = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.2, 1.5], "long_factor": [2.0, 3.0, 4.0],
    "partial_rotary_factor": 0.5,
}  # fmt: skip
CASES: dict[str, Config] = {
    "mistral": {"model_type": "mistral", **SIZES, "sliding_window": 7},
    "mistral whole": {
        "model_type": "mistral", **SIZES, "sliding_window": None, "head_dim": 10, "num_key_value_heads": 1,
    },
    "ministral3": {"model_type": "ministral3", **SIZES, "head_dim": 12, "rope_parameters": YARN},
    "ministral3 odd": {
        "model_type": "ministral3", **SIZES, "head_dim": 22, "num_key_value_heads": 1, "sliding_window": 9,
        "tie_word_embeddings": True, "rope_parameters": {**YARN, "original_max_position_embeddings": 5},
    },
    "smollm3": {"model_type": "smollm3", **SIZES, "num_hidden_layers": 4, "rope_parameters": None},
    "smollm3 odd": {
        "model_type": "smollm3", **SIZES, "no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 6,
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 1,
    },
    "qwen2": {"model_type": "qwen2", **SIZES},
    "qwen2 odd": {
        "model_type": "qwen2", **SIZES, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 5,
        "max_window_layers": 1, "tie_word_embeddings": True, "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                            "original_max_position_embeddings": 32},
    },
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3 odd": {
        "model_type": "qwen3", **SIZES, "num_hidden_layers": 3, "head_dim": 10, "num_key_value_heads": 1,
        "attention_bias": True, "use_sliding_window": True, "sliding_window": 3, "layer_types": MIXED,
    },
    "phi3": {"model_type": "phi3", **SIZES, "sliding_window": 9},
    "phi3 odd": {
        "model_type": "phi3", **SIZES, "num_key_value_heads": 1, "original_max_position_embeddings": 60,
        "tie_word_embeddings": True, "rope_parameters": LONG,
    },
    "olmo": {"model_type": "olmo", **SIZES},
    "olmo odd": {
        "model_type": "olmo", **SIZES, "clip_qkv": 0.2, "attention_bias": True, "num_key_value_heads": 1,
        "tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    },
    "mpt": MPT,
    "mpt odd": {
        **MPT, "d_model": 60, "n_heads": 5, "tie_word_embeddings": False,
        "attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.4},
    },
}  # fmt: skip
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


@pytest.mark.parametrize("case", ["ministral3 odd", "smollm3 odd", "qwen2 odd", "qwen3 odd", "phi3 odd", "mpt odd"])
def test_they_are_finetuned(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    check_finetunes(folders[case], tmp_path)


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("odd")] + ["mistral"])
def test_they_are_pruned_packed_and_run(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    check_pruned_packed_and_run(folders[case], tmp_path, (2, 4) if case == "mistral" else None)


def described(case: str, **changes: Any) -> Any:
    config = {**CASES[case], **changes}
    return arch.family(config).describe(config)


def test_layers_have_the_windows_and_positions_that_configs_ask_for() -> None:
    def windows(case: str, **changes: Any) -> list[int | None]:
        return [block.branches[0].mixer.window for block in described(case, **changes).blocks]

    assert windows("mistral") == [7, 7]
    assert windows("mistral whole") == [None, None]
    assert windows("qwen2 odd") == [None, 5, 5]
    assert windows("qwen2 odd", use_sliding_window=False) == [None] * 3
    assert windows("qwen3 odd") == [None, 3, None]
    assert windows("smollm3 odd") == [6, None]
    assert windows("smollm3 odd", layer_types=["full_attention", "sliding_attention"]) == [None, 6]
    assert windows("phi3") == [9, 9]
    positions = [block.branches[0].mixer.positions is None for block in described("smollm3").blocks]
    assert positions == [False, False, False, True]
    assert len(described("smollm3").stack.kinds) == 2


def test_defaults_are_those_of_transformers() -> None:
    from transformers import AutoConfig

    for kind in sorted({config["model_type"] for config in CASES.values()}):
        sizes = {"d_model": 256, "n_heads": 8} if kind == "mpt" else {"hidden_size": 256, "num_attention_heads": 32}
        full = AutoConfig.for_model(kind, **sizes).to_dict()
        needed = () if kind == "mpt" else ("num_hidden_layers", "intermediate_size", "vocab_size")
        bare = {"model_type": kind, **sizes, **{key: full[key] for key in needed}}
        assert arch.family(bare).describe(bare) == arch.family(bare).describe(full), kind


BAD: dict[str, tuple[str, Config, str]] = {
    "mixed mistral": (
        "mistral",
        {"layer_types": MIXED[:2]},
        "layer_types of mistral must all be as sliding_window says",
    ),
    "window": ("mistral", {"sliding_window": -1}, "sliding_window must be a whole number"),
    "two words": ("mistral", {"use_sliding_window": False}, "use_sliding_window false contradicts sliding_window 7"),
    "two words of 3": (
        "ministral3",
        {"use_sliding_window": False, "sliding_window": 9},
        "use_sliding_window false contradicts",
    ),
    "mixed ministral": ("ministral3", {"layer_types": MIXED[:2]}, "layer_types of ministral3 must all be as"),
    "beta": ("ministral3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": "x"}}, "llama_4_scaling_beta must be"),
    "rotated": ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers must be a list of 4 times 0 or 1, got [1]"),
    "no window": (
        "qwen2",
        {"layer_types": MIXED[:2]},
        "layer_types asks for sliding_attention, but sliding_window is not",
    ),
    "kinds": ("qwen3", {"layer_types": ["chunked_attention"] * 2}, "layer_types must be a list of 2 times"),
    "rope": ("phi3", {"rope_parameters": {"rope_type": "llama3"}}, "rope_type 'llama3' is not one of phi3"),
    "odd part": ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.3}}, "must be even, got 3"),
    "clip": ("olmo", {"clip_qkv": 0}, "clip_qkv must be a number above 0"),
    "heads": ("mpt", {"n_heads": 5}, "d_model 48 is not a multiple of n_heads 5"),
    "alibi": ("mpt", {"attn_config": {"alibi": False}}, "attn_config: alibi false is not supported"),
    "qk": ("mpt", {"attn_config": {"qk_ln": True}}, "attn_config: qk_ln is not supported"),
    "queries": ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_config: attn_type"),
    "bias": ("mpt", {"no_bias": False}, "no_bias false is not supported"),
    "norm": ("mpt", {"norm_type": "rmsnorm"}, "norm_type 'rmsnorm' is not supported; there are: layernorm"),
    "scale": ("mpt", {"logit_scale": 0.5}, "logit_scale is not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    base, changes, words = BAD[case]
    with pytest.raises(GossamerError) as error:
        described(base, **changes)
    assert words in str(error.value)


def test_a_context_ends_where_frequencies_would_change(folders: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(folders["phi3 odd"])
    assert described("phi3 odd").context == 60
    (note,) = checkpoint.notes
    assert note.endswith("the context ends at 60 tokens, and not at 128: beyond, rotary frequencies are others")


def test_slopes_are_those_of_transformers() -> None:
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    from gossamer.arch import alibi

    for heads in (1, 2, 5, 8, 12, 16, 25, 71):
        bloom = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        np.testing.assert_allclose(alibi.bloom(heads), bloom, rtol=1e-6)
        for most in (8, 16):
            mpt = build_mpt_alibi_tensor(heads, 2, most)
            np.testing.assert_allclose(alibi.mpt(heads, most), -mpt.reshape(heads, 2)[:, 0], rtol=1e-6)
