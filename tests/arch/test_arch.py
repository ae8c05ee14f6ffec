from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.arch import families, family
from gossamer.arch.llama import Sizes
from gossamer.arch.sources import Source
from gossamer.arch.spec import Transformer
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from tiny import tiny_config, tiny_llama, tiny_shapes

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LONG = {"short_factor": [1.0 + 0.1 * j for j in range(32)], "long_factor": [2.0 + j for j in range(32)]}
ROPES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 8192),
    "linear": ({"factor": 2.5}, 8192),
    "dynamic": ({"factor": 4.0}, 4096),
    "llama3": (LLAMA3, 131072),
    "llama3 without original": ({k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}, 2048),
    "yarn": ({"factor": 16.0, "original_max_position_embeddings": 4096}, 65536),
    "yarn betas": ({"factor": 4.0, "beta_fast": 64.0, "beta_slow": 2.0, "truncate": False}, 4096),
    "yarn mscale": ({"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}, 4096),
    "yarn attention": ({"factor": 40.0, "attention_factor": 1.25}, 4096),
    "longrope": ({**LONG, "original_max_position_embeddings": 4096}, 131072),
    "longrope factor": ({**LONG, "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
    "longrope attention": ({**LONG, "factor": 4.0, "attention_factor": 1.5}, 4096),
}


def rope_config(case: str, layout: str) -> dict[str, Any]:
    values, context = ROPES[case]
    kind = case.split(" ", maxsplit=1)[0]
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": context}
    if layout == "rope_parameters":
        parameters = {"rope_type": kind, "rope_theta": 500000.0, **values}
        return tiny_config(**sizes, rope_theta=None, rope_parameters=parameters)
    return tiny_config(**sizes, rope_theta=500000.0, rope_scaling={layout: kind, **values})


@pytest.mark.parametrize("layout", ["rope_parameters", "rope_type", "type"])
@pytest.mark.parametrize("case", ROPES)
def test_rotary_variants_are_those_of_transformers(case: str, layout: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = rope_config(case, layout)
    expected = LlamaRotaryEmbedding(LlamaConfig(**config))
    got = Sizes.of(family(config).describe(config))
    # The one step that differs is the power, where each library may round its last bit otherwise.
    np.testing.assert_allclose(got.inv_freq, expected.inv_freq.numpy(), rtol=4 * np.finfo(np.float32).eps)
    assert got.rope_scale == pytest.approx(expected.attention_scaling, rel=1e-15)
    assert np.float32(got.inv_freq).tolist() == list(got.inv_freq)  # float32 values


def test_length_dependent_variants_end_where_they_would_change() -> None:
    config = rope_config("longrope", "rope_type")
    assert family(config).describe(config).context == 4096
    config = rope_config("dynamic", "rope_type")
    assert family(config).describe(config).context == 4096


def test_an_original_context_beside_the_parameters_wins() -> None:
    config = tiny_config(
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        original_max_position_embeddings=64,
    )
    other = tiny_config(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
    assert family(config).describe(config) == family(other).describe(other)


def test_config_is_mapped() -> None:
    config = tiny_config(tie_word_embeddings=True)
    got = Sizes.of(family(config).describe(config))
    assert (got.hidden, got.layers, got.heads, got.kv_heads, got.head_dim) == (96, 2, 4, 2, 24)
    assert (got.intermediate, got.vocab, got.context, got.norm_eps, got.tied) == (160, 320, 128, 1e-5, True)
    assert got.inv_freq[:2] == (1.0, float(np.float32(1) / np.float32(10000.0 ** np.float64(np.float32(2 / 24)))))
    assert len(got.inv_freq) == 12


def test_defaults_of_absent_keys() -> None:
    config = tiny_config(num_key_value_heads=None, rms_norm_eps=None, rope_theta=None, tie_word_embeddings=None)
    got = Sizes.of(family(config).describe(config))
    assert (got.kv_heads, got.norm_eps, got.tied) == (4, 1e-6, False)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"head_dim": 32},
        {"num_key_value_heads": 4},
    ],
)
def test_every_tensor_is_listed_once_with_its_shape(overrides: dict[str, Any]) -> None:
    config = tiny_config(**overrides)
    listed = family(config).sources(config)
    assert {source.tensor: source.shape for source in listed.values()} == tiny_shapes(config)
    assert len(listed) == len(tiny_shapes(config))
    assert listed["layers.1.down"] == Source("model.layers.1.mlp.down_proj.weight", (96, 160))
    assert ("head" in listed) is not config["tie_word_embeddings"]
    assert ("layers.0.q.bias" in listed) is config["attention_bias"]
    assert ("layers.0.down.bias" in listed) is config["mlp_bias"]


def test_names_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = tiny_config(attention_bias=True, mlp_bias=True)
    model = LlamaForCausalLM(LlamaConfig(**config))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {source.tensor: source.shape for source in family(config).sources(config).values()} == expected


def test_mistral_is_llama_with_a_window() -> None:
    llama = family(tiny_config()).describe(tiny_config())
    for window in (64, None, 4096):
        config = {**tiny_config(model_type="mistral"), "sliding_window": window}
        described = family(config).describe(config)
        assert (windows(described), described.context) == ([window] * 2, 128)
        assert (described == llama) is (window is None)
    assert {source.tensor: source.shape for source in family(config).sources(config).values()} == tiny_shapes(config)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no model_type": (
        {"model_type": None},
        "model_type None is not supported; there are: ",
    ),
    "model_type": (
        {"model_type": "mamba"},
        "model_type 'mamba' is not supported; there are: ",
    ),
    "helper": ({"model_type": "rope"}, "model_type 'rope' is not supported"),
    "path": ({"model_type": "../llama"}, "is not supported"),
    "list": ({"model_type": ["llama"]}, "is not supported"),
    "missing": ({"hidden_size": None}, "hidden_size is missing"),
    "text": ({"hidden_size": "96"}, "hidden_size must be a whole number from 1 to 16777216, got '96'"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers must be a whole number"),
    "boolean": ({"num_attention_heads": True}, "num_attention_heads must be a whole number"),
    "huge": ({"vocab_size": 1 << 40}, "vocab_size must be a whole number"),
    "heads": ({"num_attention_heads": 5}, "hidden_size 96 is not a multiple of num_attention_heads 5"),
    "kv heads": ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    "odd head": ({"head_dim": 25}, "must be even, got 25"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    "eps": ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a number above 0"),
    "tied": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    "bias": ({"attention_bias": 1}, "attention_bias must be true or false"),
    "theta": ({"rope_theta": 0}, "rope_theta must be a number above 0"),
    "theta of one": ({"rope_theta": 1}, "rope_theta must be above 1"),
    "rope type": ({"rope_scaling": {"type": "su"}}, "rope_type 'su' is not supported; there are: default, linear"),
    "rope list": ({"rope_scaling": [1]}, "rope_scaling must be one object"),
    "rope nested": ({"rope_parameters": {"full_attention": {}}}, "rope_parameters must be one object"),
    "factor": ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    "factor type": ({"rope_scaling": {"type": "dynamic", "factor": "4"}}, "factor must be a number above 0"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    "llama3": (
        {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        "high_freq_factor must be above low_freq_factor",
    ),
    "longrope": ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "short_factor must be a list of 12"),
    "yarn factor": (
        {"rope_scaling": {"type": "yarn", "factor": 1e308, "mscale": 1e308, "mscale_all_dim": 1e-308}},
        "these values give frequencies or a scale that are not finite",
    ),
    "yarn turns": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 1e-320}},
        "rope_type yarn cannot be computed from these values",
    ),
    "yarn scale": ({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1e300}}, "are not finite"),
    "longrope scale": (
        {
            "rope_scaling": {
                "type": "longrope",
                "factor": 1e300,
                "short_factor": [1.0] * 12,
                "original_max_position_embeddings": 1,
            }
        },
        "rope_type longrope cannot be computed from these values",
    ),
    "longrope zero": (
        {"rope_scaling": {"type": "longrope", "short_factor": [0.0] * 12}},
        "short_factor must be a number above 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_name_the_key(case: str) -> None:
    overrides, words = BAD[case]
    config = tiny_config(**overrides)

    def read() -> None:  # sizes first, as a checkpoint does
        family(config).sources(config)
        family(config).describe(config)

    with pytest.raises(GossamerError) as error:
        read()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_every_module_of_the_folder_is_a_family_or_a_helper() -> None:
    for name in families():
        module = family({"model_type": name})
        assert callable(module.describe)
        assert callable(module.sources)


ASKS_FOR_MORE: dict[str, dict[str, Any]] = {
    "attention_multiplier": {"attention_multiplier": 1.0},
    "residual_multiplier": {"residual_multiplier": 0.22},
    "embedding_multiplier": {"embedding_multiplier": 12.0},
    "logits_scaling": {"logits_scaling": 8.0},
    "final_logit_softcapping": {"final_logit_softcapping": 30.0},
    "query_pre_attn_scalar": {"query_pre_attn_scalar": 144},
    "use_qk_norm": {"use_qk_norm": True},
    "num_local_experts": {"num_local_experts": 8},
    "use_parallel_residual": {"use_parallel_residual": True},
    "no_rope_layers": {"no_rope_layers": [1, 1, 0]},
    "pruned_heads": {"pruned_heads": {"0": [1]}},
    "add_cross_attention": {"add_cross_attention": True},
    "layer_types": {"layer_types": ["full_attention", "linear_attention"]},
    "rope_parameters: mrope_section": {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 4, 4]}},
    "rope_parameters: long_mscale": {"rope_scaling": {"type": "linear", "factor": 2.0, "long_mscale": 1.2}},
}


@pytest.mark.parametrize("key", ASKS_FOR_MORE)
def test_keys_that_would_change_the_mathematics_are_refused_by_name(key: str) -> None:
    config = tiny_config(**ASKS_FOR_MORE[key])
    with pytest.raises(GossamerError) as error:
        family(config).describe(config)
    assert str(error.value).startswith(f"{key} ")


def test_keys_that_ask_for_nothing_are_taken() -> None:
    from transformers import LlamaConfig

    plain = tiny_config()
    for neutral in (
        {
            "attention_multiplier": 24**-0.5,
            "residual_multiplier": 1,
            "logits_scaling": 1.0,
            "final_logit_softcapping": None,
        },
        {"use_qk_norm": False, "num_local_experts": 0, "pruned_heads": {}, "layer_types": ["full_attention"] * 2},
        {"rope_scaling": {"rope_type": "default", "attn_factor": 1.0, "finetuned": True}},
    ):
        config = plain | neutral
        assert family(config).describe(config) == family(plain).describe(plain)
        assert family(config).unread(config) == []
    written = LlamaConfig(**plain).to_dict()
    assert family(written).unread(written) == []
    assert family(plain).unread(plain | {"my_note": "x", "grade": 10**400}) == ["my_note", "grade"]


def windows(described: Transformer) -> list[int | None]:
    return [block.branches[0].mixer.window for block in described.blocks]


def test_layers_have_the_windows_that_a_config_asks_for() -> None:
    for overrides, found in (
        ({"sliding_window": 64}, [64, 64]),
        ({"sliding_window": 64, "layer_types": ["sliding_attention"] * 2}, [64, 64]),
        ({"sliding_window": None}, [None, None]),
    ):
        config = tiny_config(model_type="mistral") | overrides
        described = family(config).describe(config)
        assert (windows(described), described.context) == (found, 128)


def test_a_llama_has_no_window_and_its_key_is_told(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tiny_llama(tmp_path / "it", sliding_window=4)
    ids = np.arange(40) * 7 % 320
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(ids)[None]).logits[0].numpy()
    model = gossamer.load(folder, weights="f32", activations="f32", threads=1)
    np.testing.assert_allclose(model.logits(ids), expected, rtol=0, atol=5e-4)
    assert any("left out: sliding_window" in note for note in open_checkpoint(folder).notes)


@pytest.mark.parametrize(
    "overrides",
    [
        {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rope_theta": 10000.0},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 500000.0},
        {"rope_scaling": {}, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    ],
)
def test_where_two_places_speak_of_rotation_the_one_of_transformers_counts(overrides: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = tiny_config(rope_theta=None) | overrides
    expected = LlamaRotaryEmbedding(LlamaConfig(**config)).inv_freq.numpy()
    np.testing.assert_allclose(Sizes.of(family(config).describe(config)).inv_freq, expected, rtol=4 * 2.0**-23)
