"""Tiny models of transformers, and the keys that llama.cpp's converter writes for them."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_CONFIG: Config = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": 320, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
_ALIKE: Config = {key: value for key, value in _CONFIG.items() if key != "num_key_value_heads"}
_ONE: Config = {
    "embedding_length": 48, "block_count": 2, "attention.head_count": 4, "feed_forward_length": 80,
    "context_length": 64,
}  # fmt: skip
_SIZES: Config = {**_ONE, "attention.head_count_kv": 2}
_RMS: Config = {**_SIZES, "attention.layer_norm_rms_epsilon": 1e-6}
_LAYER: Config = {**_SIZES, "attention.layer_norm_epsilon": 1e-5}


def _rope(theta: float, **more: Any) -> Config:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


# architecture, config, keys
CASES: dict[str, tuple[str, Config, Config]] = {
    "llama": ("llama", {"model_type": "llama", **_CONFIG}, {**_RMS, "rope.dimension_count": 12}),
    "qwen2": ("qwen2", {"model_type": "qwen2", **_CONFIG, **_rope(5e5)}, {**_RMS, "rope.freq_base": 5e5}),
    "qwen3": (
        "qwen3",
        {"model_type": "qwen3", **_CONFIG, "head_dim": 16, "tie_word_embeddings": True},
        {**_RMS, "attention.key_length": 16, "attention.value_length": 16},
    ),
    "mixtral": (
        "llama",
        {"model_type": "mixtral", **_CONFIG, "num_local_experts": 3, "num_experts_per_tok": 2, "rms_norm_eps": 1e-6},
        {**_RMS, "expert_count": 3, "expert_used_count": 2, "rope.freq_base": 1e6},
    ),
    "qwen3moe": (
        "qwen3moe",
        {
            "model_type": "qwen3_moe", **_CONFIG, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 40, "norm_topk_prob": True,
        },
        {
            **_RMS, "attention.key_length": 16, "expert_count": 4, "expert_used_count": 2,
            "expert_feed_forward_length": 40,
        },
    ),
    "qwen2moe": (
        "qwen2moe",
        {
            "model_type": "qwen2_moe", **_CONFIG, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56,
        },
        {
            **_RMS, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 40,
            "expert_shared_feed_forward_length": 56,
        },
    ),
    "olmoe": (
        "olmoe",
        {"model_type": "olmoe", **_CONFIG, "num_experts": 4, "num_experts_per_tok": 2, "rms_norm_eps": 1e-6},
        {**_RMS, "expert_count": 4, "expert_used_count": 2},
    ),
    "gpt-oss": (
        "gpt-oss",
        {
            "model_type": "gpt_oss", **_CONFIG, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
            "sliding_window": 8, "rms_norm_eps": 1e-6, **_rope(1e4),
        },
        {
            **_RMS, "attention.key_length": 16, "expert_count": 4, "expert_used_count": 2,
            "expert_feed_forward_length": 80, "attention.sliding_window": 8, "rope.freq_base": 1e4,
        },
    ),
    "gpt2": (
        "gpt2",
        {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320},
        {**_ONE, "feed_forward_length": 192, "attention.layer_norm_epsilon": 1e-5},
    ),
    "gptneox": (
        "gptneox",
        {"model_type": "gpt_neox", **_ALIKE, **_rope(500.0, partial_rotary_factor=0.5)},
        {
            **_ONE, "attention.layer_norm_epsilon": 1e-5, "use_parallel_residual": True, "rope.dimension_count": 6,
            "rope.freq_base": 500.0,
        },
    ),
    "gemma": (
        "gemma",
        {"model_type": "gemma", **_CONFIG, "head_dim": 16},
        {**_RMS, "attention.key_length": 16, "attention.value_length": 16},
    ),
    "gemma2": (
        "gemma2",
        {"model_type": "gemma2", **_CONFIG, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
        {
            **_RMS, "attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "gemma3",
        {
            "model_type": "gemma3_text", **_CONFIG, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 8,
            "query_pre_attn_scalar": 16,
        },
        {
            **_RMS, "block_count": 6, "attention.key_length": 16, "attention.value_length": 16,
            "attention.sliding_window": 8, "rope.freq_base": 1e6,
        },
    ),
    "phi3": (
        "phi3",
        {"model_type": "phi3", **_CONFIG, "sliding_window": 32, "rms_norm_eps": 1e-6},
        {**_RMS, "attention.sliding_window": 32, "rope.dimension_count": 12, "rope.freq_base": 1e4},
    ),
    "bloom": (
        "bloom",
        {"model_type": "bloom", "hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": 320, "seq_length": 64},
        {**_ONE, "feed_forward_length": 192, "attention.head_count_kv": 4, "attention.layer_norm_epsilon": 1e-5},
    ),
    "mpt": (
        "mpt",
        {
            "model_type": "mpt", "d_model": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 320, "max_seq_len": 64,
            "expansion_ratio": 4, "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 2.0},
        },
        {
            **_ONE, "feed_forward_length": 192, "attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 2.0,
            "attention.max_alibi_bias": 8.0,
        },
    ),
    "falcon": (
        "falcon",
        {
            "model_type": "falcon", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 320, "new_decoder_architecture": False, "multi_query": True, "bias": False,
        },
        {
            **_ONE, "feed_forward_length": 192, "attention.head_count_kv": 1, "attention.layer_norm_epsilon": 1e-5,
            "context_length": 2048, "tensor_data_layout": "jploski",
        },
    ),
    "falcon 40b": (
        "falcon",
        {
            "model_type": "falcon", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_kv_heads": 2, "vocab_size": 320, "new_decoder_architecture": True, "bias": False,
        },
        {
            **_ONE, "feed_forward_length": 192, "attention.head_count_kv": 2, "attention.layer_norm_epsilon": 1e-5,
            "context_length": 2048, "tensor_data_layout": "jploski",
        },
    ),
    "starcoder2": (
        "starcoder2",
        {"model_type": "starcoder2", **_CONFIG, **_rope(1e5)},
        {**_LAYER, "rope.freq_base": 1e5},
    ),
    "stablelm": (
        "stablelm",
        {"model_type": "stablelm", **_CONFIG, **_rope(1e4, partial_rotary_factor=0.5)},
        {**_LAYER, "rope.dimension_count": 6, "rope.freq_base": 1e4, "use_parallel_residual": False},
    ),
    "olmo": ("olmo", {"model_type": "olmo", **_CONFIG, "clip_qkv": 3.0}, {**_LAYER, "attention.clamp_kqv": 3.0}),
    "olmo2": ("olmo2", {"model_type": "olmo2", **_CONFIG, "rms_norm_eps": 1e-6}, _RMS),
    "granite": (
        "granite",
        {
            "model_type": "granite", **_CONFIG, "attention_multiplier": 0.1, "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22, "logits_scaling": 8.0,
        },
        {**_RMS, "attention.scale": 0.1, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0},
    ),
    "olmo3": (
        "olmo2",
        {
            "model_type": "olmo3", **_CONFIG, "num_hidden_layers": 4, "rms_norm_eps": 1e-6, "sliding_window": 8,
            **_rope(5e5),
        },
        {**_RMS, "block_count": 4, "attention.sliding_window": 8, "rope.freq_base": 5e5},
    ),
    "granitemoe": (
        "granitemoe",
        {
            "model_type": "granitemoe", **_CONFIG, "attention_multiplier": 0.1, "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22, "logits_scaling": 8.0, "num_local_experts": 4, "num_experts_per_tok": 2,
        },
        {
            **_RMS, "attention.scale": 0.1, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0,
            "expert_count": 4, "expert_used_count": 2,
        },
    ),
    "mistral3": (
        "mistral3",
        {
            "model_type": "ministral3", **_CONFIG, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            },
        },
        {
            **_RMS, "attention.key_length": 16, "attention.value_length": 16, "attention.temperature_scale": 0.1,
            "rope.freq_base": 1e6, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0, "rope.scaling.yarn_log_multiplier": 1.0,
        },
    ),
    "glm4": (
        "glm4",
        {
            "model_type": "glm4", **_CONFIG, "head_dim": 12, "rms_norm_eps": 1e-6,
            **_rope(1e4, partial_rotary_factor=0.5),
        },
        {**_RMS, "rope.dimension_count": 6, "rope.freq_base": 1e4},
    ),
    "cohere2": (
        "cohere2",
        {"model_type": "cohere2", **_CONFIG, "num_hidden_layers": 4, "logit_scale": 0.25, "sliding_window": 8},
        {
            **_LAYER, "block_count": 4, "logit_scale": 0.25, "attention.sliding_window": 8, "rope.dimension_count": 12,
            "rope.freq_base": 1e4, "rope.scaling.type": "none",
        },
    ),
    "smollm3": (
        "smollm3",
        {"model_type": "smollm3", **_CONFIG, "num_hidden_layers": 4, "rms_norm_eps": 1e-6, **_rope(2e6)},
        {**_RMS, "block_count": 4, "rope.freq_base": 2e6, "rope.dimension_count": 12},
    ),
}  # fmt: skip

_QWEN3_MOE: Config = CASES["qwen3moe"][1]
_STABLELM: Config = CASES["stablelm"][1]
_GEMMA3: Config = CASES["gemma3"][1]
_GPT_OSS: Config = CASES["gpt-oss"][1]
_TURNED: Config = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}

# Models that are written as files, too: what a config may say otherwise than that of the case above.
VARIANTS: dict[str, Config] = {
    "llama with biases": {"model_type": "llama", **_CONFIG, "attention_bias": True},
    "llama3": {
        "model_type": "llama", **_CONFIG, "rope_parameters": {
            **_TURNED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
    },
    "linear": {"model_type": "llama", **_CONFIG, "rope_parameters": {**_TURNED, "rope_type": "linear"}},
    "yarn": {"model_type": "qwen3", **_CONFIG, "head_dim": 16, "rope_parameters": {**_TURNED, "rope_type": "yarn"}},
    "mistral": {"model_type": "mistral", **_CONFIG, "head_dim": 16, "sliding_window": None, **_rope(1e6)},
    "mistral with a window": {"model_type": "mistral", **_CONFIG, "sliding_window": 8, **_rope(1e4)},
    "qwen3_moe, as wide as its experts": {**_QWEN3_MOE, "intermediate_size": 40},
    "gemma3 by kind": {
        **_GEMMA3, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    },
    "stablelm in parallel": {**_STABLELM, "use_parallel_residual": True},
    "stablelm with norms of heads": {**_STABLELM, "qk_layernorm": True, "use_qkv_bias": True},
    "gpt_neox in turn": {**CASES["gptneox"][1], "use_parallel_residual": False},
    "gpt2 of another width": {**CASES["gpt2"][1], "n_inner": 64},
    "phi3 with longrope": {
        **CASES["phi3"][1], "original_max_position_embeddings": 32, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        },
    },
    "gpt_oss with yarn": {
        **_GPT_OSS, "rope_parameters": {**_TURNED, "rope_type": "yarn", "truncate": False},
    },
}  # fmt: skip

# What files do not say, and the words that tell.
UNSAID: dict[str, tuple[Config, str]] = {
    "windows in some layers": (
        {
            "model_type": "qwen2", **_CONFIG, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
            **_rope(1e4),
        },
        "window",
    ),
    "weights of experts": ({**_QWEN3_MOE, "norm_topk_prob": False}, "normalized: False would be read as True"),
    "layers without experts": ({**_QWEN3_MOE, "mlp_only_layers": [1]}, "tensor"),
    "scaled frequencies": (
        {
            **_QWEN3_MOE, "rope_parameters": {
                **_TURNED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            },
        },
        "no qwen3moe file has a tensor rope_freqs.weight",
    ),
    "frequencies that grow": (
        {"model_type": "llama", **_CONFIG, "rope_parameters": {**_TURNED, "rope_type": "dynamic"}},
        "rope_type 'dynamic' is none that files have",
    ),
    "softcap": ({**_GEMMA3, "final_logit_softcapping": 30.0}, "softcap"),
}  # fmt: skip
