from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_files import write_gguf
from gossamer import arch
from gossamer.arch.llama import Sizes
from gossamer.checkpoints import open_checkpoint
from gossamer.checkpoints.gguf_config import find, read_config
from gossamer.errors import GossamerError


def decoder(path: Path, **options: Any) -> Sizes:
    config = open_checkpoint(write_gguf(path, **options)).config
    return Sizes.of(arch.family(config).describe(config))


def frequencies(path: Path, **options: Any) -> tuple[list[float], float]:
    config = decoder(path, **options)
    return list(config.inv_freq), config.rope_scale


@pytest.fixture
def plain(tmp_path: Path) -> list[float]:
    return frequencies(tmp_path / "plain.gguf")[0]


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 2.0, "llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 1.0}, 1.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, 1.0),
        ({"llama.rope.scaling.factor": 0.0}, 1.0),
        ({"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.finetuned": True}, 4.0),
    ],
)
def test_linear_scaling_by_all_its_names(
    tmp_path: Path, plain: list[float], keys: dict[str, Any], factor: float
) -> None:
    assert frequencies(tmp_path / "m.gguf", keys=keys) == ([value / factor for value in plain], 1.0)


def test_yarn_with_its_own_betas(tmp_path: Path, plain: list[float]) -> None:
    keys = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    usual, scale = frequencies(tmp_path / "yarn.gguf", keys=keys)
    assert (usual[0], usual[-1], scale) == (plain[0], plain[-1] / 4, pytest.approx(0.1 * np.log(4) + 1))
    betas = {"llama.rope.scaling.yarn_beta_fast": 3.0, "llama.rope.scaling.yarn_beta_slow": 0.5}
    assert frequencies(tmp_path / "betas.gguf", keys=keys | betas)[0] != usual
    written_out = {"llama.rope.scaling.yarn_beta_fast": 32.0, "llama.rope.scaling.yarn_beta_slow": 1.0}
    neutral = {"llama.rope.scaling.yarn_ext_factor": 1.0, "llama.rope.scaling.attn_factor": 1.0}
    assert frequencies(tmp_path / "same.gguf", keys=keys | written_out | neutral)[0] == usual


def test_stored_divisors_go_with_a_linear_factor(tmp_path: Path, plain: list[float]) -> None:
    factors = np.linspace(1, 8, 12, dtype=np.float32)
    tensors = {"rope_freqs.weight": factors}
    for keys, factor in (({}, 1.0), ({"llama.rope.scaling.factor": 2.0}, 2.0)):
        got, scale = frequencies(tmp_path / "m.gguf", keys=keys, tensors=tensors)
        np.testing.assert_allclose(got, np.array(plain) / factors / factor, rtol=4 * np.finfo(np.float32).eps)
        assert scale == 1.0
    with pytest.raises(GossamerError, match=r"rope_freqs\.weight beside llama\.rope\.scaling\.type 'yarn'"):
        frequencies(tmp_path / "m.gguf", keys={"llama.rope.scaling.type": "yarn"}, tensors=tensors)


def test_a_window_of_attention_is_one_of_all_layers(tmp_path: Path) -> None:
    for window in (64, 0):
        file = write_gguf(tmp_path / "m.gguf", keys={"llama.attention.sliding_window": window})
        config = open_checkpoint(file).config
        assert config["model_type"] == ("mistral" if window else "llama")
        described = arch.family(config).describe(config)
        assert {block.branches[0].mixer.window for block in described.blocks} == {window or None}


def test_keys_that_ask_for_nothing_are_taken(tmp_path: Path) -> None:
    neutral = {
        "llama.expert_count": 0,
        "llama.expert_used_count": 0,
        "llama.logit_scale": 1.0,
        "llama.residual_scale": 0.0,
        "llama.attention.scale": 24**-0.5,
        "llama.attention.causal": True,
        "llama.attention.key_length": 24,
        "llama.attention.value_length": 24,
        "llama.attention.head_count_kv": [2, 2],
        "llama.tensor_data_layout": "Meta AI original pth",
        "llama.vocab_size": 320,
    }
    assert decoder(tmp_path / "m.gguf", keys=neutral) == decoder(tmp_path / "plain.gguf")


REFUSED: dict[str, Any] = {
    "llama.attention.causal": False,
    "llama.attention.clamp_kqv": 8.0,
    "llama.attention.head_count_kv": [2, 1],
    "llama.attention.key_length": 32,
    "llama.attention.max_alibi_bias": 8.0,
    "llama.attention.scale": 1.0,
    "llama.attention.sliding_window_pattern": 4,
    "llama.attention.temperature_scale": 0.1,
    "llama.attention.value_length": 32,
    "llama.embedding_scale": 12.0,
    "llama.expert_count": 4,
    "llama.final_logit_softcapping": 30.0,
    "llama.interleave_moe_layer_step": 2,
    "llama.logit_scale": 0.125,
    "llama.pooling_type": 1,
    "llama.residual_scale": 0.22,
    "llama.rope.dimension_count": 12,
    "llama.rope.freq_base": 0.0,
    "llama.rope.freq_base_swa": 5000.0,
    "llama.rope.scaling.alpha": 1000.0,
    "llama.rope.scaling.attn_factor": 1.2,
    "llama.rope.scaling.yarn_log_multiplier": 1.0,
    "llama.use_parallel_residual": True,
    "llama.something.new": "on",
}
OWN_NAMES = {
    "llama.expert_count": "block_sparse_moe",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.key_length": "attn_q.weight",
    "llama.rope.freq_base": "rope_theta",
}


@pytest.mark.parametrize("key", REFUSED)
def test_keys_that_would_change_the_mathematics_are_refused_by_name(tmp_path: Path, key: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", keys={key: REFUSED[key]})
    with pytest.raises(GossamerError) as error:
        open_checkpoint(path)
    assert OWN_NAMES.get(key, key) in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


SIZES: dict[str, Any] = {
    "embedding_length": 64, "feed_forward_length": 80, "block_count": 7, "attention.head_count": 4,
    "context_length": 64, "attention.layer_norm_rms_epsilon": 1e-6, "attention.layer_norm_epsilon": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("llama", {}),
        ("llama", {"attention.sliding_window": 9}),
        ("llama", {"expert_count": 4, "expert_used_count": 2}),
        ("qwen2", {}),
        ("qwen3", {"attention.key_length": 16}),
        ("smollm3", {}),
        ("gemma3", {"attention.key_length": 16}),
        ("granite", {}),
        ("glm4", {"attention.key_length": 16}),
        ("starcoder2", {}),
        ("gpt-oss", {"expert_count": 4, "expert_used_count": 2, "attention.key_length": 16}),
    ],
)
def test_what_a_file_leaves_out_is_what_its_readers_take(architecture: str, more: dict[str, Any]) -> None:
    family = find(Path("m.gguf"), architecture)
    sizes = {key: SIZES[key] for key in family.needed.values()}
    keys = {f"{architecture}.{key}": value for key, value in {**sizes, **more}.items()}
    config, _ = read_config(Path("m.gguf"), architecture, family, keys, [], 320, {})
    attention = arch.family(config).describe(config).blocks[5].branches[0].mixer  # a whole one of Gemma 3
    assert (attention.heads, attention.kv_heads) == (4, 4)
    assert attention.scale == pytest.approx(0.25)
    wave = attention.positions.inv_freq
    assert wave[1] == pytest.approx(10000 ** (-1 / len(wave)), rel=1e-6)


def test_a_gemma_3_without_a_window_sees_everything() -> None:
    keys = {f"gemma3.{key}": value for key, value in SIZES.items()}
    config, _ = read_config(Path("m.gguf"), "gemma3", find(Path("m.gguf"), "gemma3"), keys, [], 320, {})
    described = arch.family(config).describe(config)
    assert {block.branches[0].mixer.window for block in described.blocks} == {None}
