"""Changed configs for bench/config_sweep.py: small models of every family, and values that a key of theirs may have."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import transformers

from gossamer import arch
from gossamer.arch.fields import FULL, SLIDING

Config = dict[str, Any]
REMOVED = "REMOVED"
"""In the place of a value: the key is not there."""


def words(text: str) -> list[str]:
    """Returns the words of a text, in their order."""
    return text.split()


_SIZES: Config = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
_BERT: Config = {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"}
_SIDES: Config = {
    "vocab_size": 320, "d_model": 48, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 90,
    "decoder_start_token_id": 3, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
}  # fmt: skip
_MOE: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
_T5: Config = {"vocab_size": 320, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_FALCON: Config = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
    "max_position_embeddings": 64,
}  # fmt: skip
_YARN: Config = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5, "beta_fast": 32.0, "beta_slow": 1.0,
    "max_position_embeddings": 128,
}  # fmt: skip
_GEMMA4: Config = {
    **_SIZES, "head_dim": 12, "global_head_dim": 24, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    "sliding_window": 7, "hidden_size_per_layer_input": 0,
}  # fmt: skip
_TOWER: Config = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16,
}  # fmt: skip
BASES: dict[str, list[Config]] = {
    "bart": [_SIDES],
    "bert": [_BERT],
    "bloom": [{"hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": 320}],
    "cohere2": [{**_SIZES, "sliding_window": 6}],
    "distilbert": [
        {"vocab_size": 320, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 96}
    ],
    "falcon": [_FALCON, {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 80}],
    "gemma": [{**_SIZES, "head_dim": 16}],
    "gemma2": [{**_SIZES, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16}],
    "gemma3_text": [{**_SIZES, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16}],
    "gemma4": [{"text_config": _GEMMA4, "vision_config": _TOWER, "audio_config": None}],
    "gemma4_text": [_GEMMA4],
    "glm4": [{**_SIZES, "head_dim": 12, "pad_token_id": 0}],
    "gpt2": [{"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320}],
    "gpt_neox": [{**_BERT, "hidden_size": 64}],
    "gpt_oss": [{**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 10}],
    "granite": [{**_SIZES, "attention_multiplier": 0.1, "embedding_multiplier": 12.0, "logits_scaling": 8.0}],
    "granitemoe": [{**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}],
    "llama": [_SIZES],
    "m2m_100": [_SIDES],
    "marian": [_SIDES],
    "ministral3": [{**_SIZES, "head_dim": 12, "rope_parameters": _YARN}],
    "mistral": [{**_SIZES, "sliding_window": 7}],
    "mixtral": [{**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}],
    "modernbert": [{**_BERT, "num_hidden_layers": 3, "local_attention": 24, "pad_token_id": 1}],
    "mpnet": [_BERT],
    "mpt": [{"d_model": 48, "n_heads": 4, "n_layers": 2, "vocab_size": 320, "max_seq_len": 128}],
    "mt5": [_T5],
    "olmo": [_SIZES],
    "olmo2": [_SIZES],
    "olmo3": [{**_SIZES, "num_hidden_layers": 4, "sliding_window": 6}],
    "olmoe": [{**_SIZES, "num_experts": 4, "num_experts_per_tok": 2}],
    "opt": [
        {
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 80, "vocab_size": 320,
            "max_position_embeddings": 64, "word_embed_proj_dim": 48,
        }
    ],
    "phi3": [{**_SIZES, "sliding_window": 9, "pad_token_id": 0}],
    "qwen2": [_SIZES, {**_SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}],
    "qwen2_moe": [{**_SIZES, **_MOE, "shared_expert_intermediate_size": 28}],
    "qwen3": [{**_SIZES, "head_dim": 16}],
    "qwen3_moe": [{**_SIZES, **_MOE, "head_dim": 16}],
    "roberta": [{**_BERT, "pad_token_id": 1}],
    "smollm3": [{**_SIZES, "num_hidden_layers": 4, "pad_token_id": 0}],
    "stablelm": [{**_SIZES, "hidden_size": 64}],
    "starcoder2": [_SIZES],
    "t5": [_T5, {**_T5, "feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}],
    "whisper": [
        {
            **{key: value for key, value in _SIDES.items() if key != "max_position_embeddings"}, "num_mel_bins": 20,
            "max_source_positions": 30, "max_target_positions": 40, "begin_suppress_tokens": None,
        }
    ],
    "xlm-roberta": [{**_BERT, "pad_token_id": 1}],
}  # fmt: skip

_ACTIVATIONS = words(
    "silu gelu gelu_new gelu_fast gelu_pytorch_tanh gelu_10 quick_gelu relu relu2 tanh mish linear GELU"
)
_ROPES: list[Any] = [
    {}, [], "linear", {"rope_type": "default"}, {"rope_theta": 300.0}, {"type": "default", "rope_theta": 300.0},
    {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    {"rope_type": None, "rope_theta": None, "partial_rotary_factor": None},
    {"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}, {"type": "linear", "factor": "2"},
    {"rope_type": "linear", "factor": 2, "rope_theta": 300}, {"type": "linear", "rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, {"rope_type": "linear"},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 300.0}, {"rope_type": "mrope", "mrope_section": [2, 2, 2]},
    {"rope_type": "default", "mrope_section": [2, 2, 2]}, {"type": "su", "short_factor": [1.0], "long_factor": [1.0]},
    {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 300.0, "original_max_position_embeddings": 16, "beta_fast": 2.0,
     "beta_slow": 0.1, "truncate": False, "attention_factor": 1.3},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "original_max_position_embeddings": 16, "factor": None},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "partial_rotary_factor": 0.5},
    *({"rope_type": "longrope", "short_factor": [1.0 + at / 9 for at in range(half)],
       "long_factor": [2.0 + at for at in range(half)], **more}
      for half in (3, 6, 8) for more in ({}, {"factor": 2.0, "original_max_position_embeddings": 64})),
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {FULL: {"rope_type": "default", "rope_theta": 300.0}},
    {SLIDING: {"rope_type": "default", "rope_theta": 300.0}},
    {FULL: {"rope_theta": 300.0}, SLIDING: {"rope_theta": 500.0}},
    {FULL: {"rope_type": "linear", "factor": 2.0}, SLIDING: {"rope_type": "default", "rope_theta": 300.0}},
    {FULL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}, SLIDING: None},
    {FULL: {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5}, SLIDING: {}},
    {FULL: {"rope_type": "default", "rope_theta": 300.0}, "rope_theta": 500.0},
]  # fmt: skip
_WINDOWS = [None, 0, 1, 5, 39, 64, -1, 5.0, "5", True, False]
_KINDS = ["layers", "all full", "all sliding", "mixed", "short", "long", "chunked", "older", "empty", None, "full"]
_FLAGS = [True, False, None, 0, 1, "true"]
_ATTENTIONS: list[Config] = [
    {"alibi": False}, {"alibi": True}, {"alibi": 1}, {"alibi_bias_max": 16}, {"alibi_bias_max": 4.0}, {"clip_qkv": 0.2},
    {"clip_qkv": 0}, {"softmax_scale": 0.3}, {"softmax_scale": 0}, {"qk_ln": True}, {"attn_impl": "torch"},
    {"attn_type": "multiquery_attention"}, {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    {"attn_pdrop": 0.1}, {"prefix_lm": True}, {"attn_uses_sequence_id": True}, {"rope": True}, {"rope_theta": 300},
    {"sliding_window_size": 5}, {"model_type": "mpt"},
]  # fmt: skip


def _each(names: str, values: list[Any]) -> dict[str, list[Any]]:
    """The same values for several keys."""
    return dict.fromkeys(names.split(), values)


_NAMED: dict[str, list[Any]] = {
    **_each(
        "hidden_act hidden_activation activation_function activation dense_act_fn", [*_ACTIVATIONS, None, "", 1, []]
    ),
    "feed_forward_proj": [*_ACTIVATIONS, "gated-gelu", "gated-silu", "gated-relu", "gated-", "double-x-gelu", None],
    **_each("rope_parameters rope_scaling", [None, *_ROPES]),
    **_each(
        "rope_theta rotary_emb_base rope_local_base_freq global_rope_theta local_rope_theta",
        [None, 300.0, 5000, "300", 0, 1, True],
    ),
    **_each("partial_rotary_factor rotary_pct rope_pct", [None, 1.0, 0.5, 0.25, 0, 1, 1.5, "0.5"]),
    **_each("sliding_window attention_window sliding_window_size local_attention", _WINDOWS),
    **_each(
        "sliding_window_pattern _sliding_window_pattern max_window_layers no_rope_layer_interval decoder_sparse_step"
        " global_attn_every_n_layers",
        [None, 0, 1, 2, 3, 9, "2", 2.0],
    ),
    "layer_types": _KINDS,
    **_each(
        "num_key_value_heads num_attention_heads num_kv_heads n_head n_heads num_heads num_global_key_value_heads"
        " encoder_attention_heads decoder_attention_heads",
        [None, 1, 2, 4, 3, 8, 0, "2", 2.0, True],
    ),
    **_each("head_dim global_head_dim", [None, 6, 8, 12, 16, 24, 0, "12", 12.0]),
    "rotary_dim": [None, 4, 6],
    "no_rope_layers": [None, [], [0], [0, 1], [1, 0, 1, 0], [1, 1, 1, 1, 0], [2, 0, 1, 1], [True, False] * 2, 0],
    "no_rope_layer_indices": [None, [0]],
    "mlp_only_layers": [None, [], [0], [1], [5], ["0"], 0, [-1]],
    "norm_type": [None, "layernorm", "low_precision_layernorm", "rmsnorm", "layer_norm"],
    "position_embedding_type": [None, "absolute", "rope", "alibi", "relative_key", "relative_key_query", "sans_pos"],
    "attn_config": [None, [], "alibi", {}, *_ATTENTIONS],
    "use_bidirectional_attention": [None, True, False, "all", "vision"],
    "per_layer_config": [None, {}, {"0": {"head_dim": 12}}, {"1": {"num_key_value_heads": 4}}, {"5": {}}],
    "mlp_type": [None, "default", "gated"],
    "pretraining_tp": [1, 2, None],
    "architectures": [None, []],
    "max_position_embeddings": [None, 20, 41, 256, 0, "128", 128.0],
    "initial_context_length": [None, 16, 4096],
    "original_max_position_embeddings": [None, 16, 64, 256, "16"],
    **_each("torch_dtype dtype", ["float32", "bfloat16"]),
    "pad_token_id": [None, 0, 1, 3, -1, 400],
    "pruned_heads": [{}, {"0": [1]}],
    "model_type": [],
    "vision_config": [],
    "text_config": [
        {**_GEMMA4, **change}
        for change in ({"tie_word_embeddings": False}, {"final_logit_softcapping": 4.0}, {"sliding_window": None})
    ],
    "quantization_config": [None],
    "transformers_version": ["4.1.0"],
    "vocab_size": [None, 320, 330, 300, "320"],
    "num_labels": [2, 3],
    "id2label": [{"0": "a"}, None],
    "label2id": [{}],
    "mrope_section": [[2, 2, 2]],
    "ffn_config": [None, {}, {"ffn_type": "mptglu"}],
    "head_bias": [True, False],
    "chunk_size_feed_forward": [0, 2],
    "torchscript": [True],
}
# Without one of these a model is as large as a real one.
_LARGE = words(
    """
    text_config vision_config audio_config vocab_size hidden_size intermediate_size num_hidden_layers n_layer n_layers
    num_layers n_embd d_model dim d_ff hidden_dim ffn_dim num_experts num_local_experts moe_intermediate_size
    shared_expert_intermediate_size encoder_layers decoder_layers encoder_ffn_dim decoder_ffn_dim expansion_ratio
    """
)
SISTERS = words(
    """
    rope_theta rope_scaling rope_parameters rotary_pct rotary_emb_base rotary_dim partial_rotary_factor rope_pct
    rope_local_base_freq global_rope_theta rope_interleaved rope_type use_rope rotary alibi alibi_bias_max
    position_embedding_type no_rope_layers no_rope_layer_interval sliding_window use_sliding_window max_window_layers
    layer_types sliding_window_pattern _sliding_window_pattern attention_window local_attention attention_chunk_size
    hidden_act hidden_activation activation_function activation n_embd n_embed hidden_size d_model dim n_head n_heads
    num_heads num_attention_heads n_layer n_layers num_layers num_hidden_layers n_inner ffn_dim d_ff intermediate_size
    ffn_hidden_size hidden_dim n_positions n_ctx max_position_embeddings max_seq_len seq_length head_dim d_kv
    num_key_value_heads num_kv_heads n_head_kv multi_query attention_bias mlp_bias use_bias bias qkv_bias use_qkv_bias
    attention_out_bias no_bias lm_head_bias head_bias logit_scale logits_scaling logits_scale residual_multiplier
    embedding_multiplier attention_multiplier scale_emb scale_depth mup_scale query_pre_attn_scalar
    attn_logit_softcapping final_logit_softcapping logits_soft_cap clip_qkv qk_norm use_qk_norm qk_layernorm
    qk_norm_type rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon norm_type rms_norm
    use_parallel_residual parallel_attn parallel_residual new_decoder_architecture num_ln_in_parallel_attn
    tie_word_embeddings tie_weights scale_embedding num_experts num_local_experts num_experts_per_tok top_k_experts
    n_routed_experts n_shared_experts moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers
    shared_expert_intermediate_size first_k_dense_replace routed_scaling_factor router_jitter_noise scoring_func
    scale_attn_by_inverse_layer_idx scale_attn_weights reorder_and_upcast_attn add_cross_attention is_decoder
    is_encoder_decoder pruned_heads prefix_lm use_cache pretraining_tp slow_but_exact
    apply_residual_connection_post_layernorm do_layer_norm_before layer_norm_elementwise_affine enable_bias
    word_embed_proj_dim normalize_embedding type_vocab_size pad_token_id initializer_range attention_dropout
    use_bidirectional_attention causal is_causal per_layer_config original_max_position_embeddings mrope_section
    mask_token_id swiglu_limit llama_4_scaling_beta attn_temperature_tuning attention_sink sinks num_kv_shared_layers
    """
)
_GROUPS = [
    ["sliding_window", "use_sliding_window", "layer_types", "max_window_layers", "sliding_window_pattern"],
    ["rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct"],
    ["rope_theta", "rope_parameters", "rope_scaling", "original_max_position_embeddings", "max_position_embeddings"],
    ["rope_parameters", "rope_local_base_freq", "layer_types", "global_rope_theta", "local_rope_theta"],
    ["head_dim", "hidden_size", "num_attention_heads", "num_key_value_heads", "partial_rotary_factor"],
    ["multi_query", "new_decoder_architecture", "num_kv_heads", "parallel_attn", "num_ln_in_parallel_attn", "bias"],
    ["hidden_act", "hidden_activation", "activation_function", "dense_act_fn", "feed_forward_proj", "is_gated_act"],
    ["tie_word_embeddings", "scale_decoder_outputs", "attention_bias", "mlp_bias", "use_bias"],
    ["num_experts", "num_local_experts", "num_experts_per_tok", "experts_per_token", "norm_topk_prob"],
    ["no_rope_layers", "no_rope_layer_interval", "layer_types", "sliding_window", "use_sliding_window"],
    ["slow_but_exact", "pretraining_tp"],
    ["n_embd", "hidden_size", "n_inner", "n_head", "num_attention_heads", "n_layer", "num_hidden_layers", "n_embed"],
]


def full(family: str, base: Config) -> Config:
    """Returns a config as transformers writes it."""
    settings = transformers.AutoConfig.for_model(family, **base)
    return {key: value for key, value in settings.to_dict().items() if key not in ("dtype", "id2label", "label2id")}


def known(family: str) -> tuple[dict[str, Any], set[str]]:
    """Returns keys with transformers' defaults, those of the family in both readers first; and which are its own."""
    kind = type(transformers.AutoConfig.for_model(family))
    found = {one.name: None for one in fields(kind)}
    found |= transformers.AutoConfig.for_model(family).to_dict()
    names = sorted(kind.attribute_map)
    module: Any = arch.family({"model_type": family})
    for name in ("_KEYS", "KEYS"):
        names += sorted(getattr(module, name, ()))
    own = {*found, *names}
    for name in (*names, *SISTERS):
        found.setdefault(name, None)
    return found, own


def values(key: str, default: Any, layers: int) -> list[Any]:
    """Returns what a key is set to, one after the other."""
    if key == "layer_types":
        return [_kinds(kind, layers) for kind in _KINDS]
    if key in _NAMED:
        return _NAMED[key]
    if isinstance(default, bool):
        return _FLAGS
    if isinstance(default, int):
        return [None, 0, 1, 2, max(default // 2, 1), 2 * default + 2, float(default), str(default), -1, True]
    if isinstance(default, float):
        return [None, 0, 0.0, 1, 2 * default, default / 2, 0.3, str(default), -1.0, True]
    if isinstance(default, str):
        return [None, "", "other", 1]
    if isinstance(default, (list, dict)):
        return [None, type(default)(), [0], {"a": 1}, 1]
    return [None, True, 1, 4, 0.3, "x"]


def _kinds(kind: str | None, layers: int) -> Any:
    """A list of kinds of layers by what it is called."""
    return {
        "all full": [FULL] * layers, "all sliding": [SLIDING] * layers, "empty": [], "full": FULL, None: None,
        "mixed": [(FULL, SLIDING)[layer % 2] for layer in range(layers)], "short": [FULL] * (layers - 1),
        "long": [FULL] * (layers + 2), "chunked": ["chunked_attention"] * layers,
        "older": [("full", "sliding")[layer % 2] for layer in range(layers)],
        "layers": [(SLIDING, FULL)[layer % 2] for layer in range(layers)],
    }[kind]  # fmt: skip


def inputs(family: str, seed: int, draws: int) -> Iterator[tuple[str, Config, Config]]:
    """Yields (name of the base, config, keys that were changed): each key alone, then several of a group at random."""
    defaults, mine = known(family)
    for number, small in enumerate(BASES[family]):
        written = full(family, small)
        settings = transformers.AutoConfig.for_model(family, **small).get_text_config(decoder=True)
        layers = settings.num_hidden_layers
        for kind, base in (("small", small), ("written", written)):
            name = f"{kind} {number}"
            rng = random.Random(f"{seed} {family} {name}")
            yield name, base, {}
            for key, default in defaults.items():
                given = written.get(key, default)
                every = ([REMOVED] if key in base and key not in _LARGE else []) + values(key, given, layers)
                for value in every if key in mine else rng.sample(every, min(len(every), 3)):
                    yield name, base, {key: value}
            for group in _GROUPS:
                own = [key for key in group if key in defaults]
                choices = {
                    key: [REMOVED][: key not in _LARGE] + values(key, written.get(key, defaults[key]), layers)
                    for key in own
                }
                for _ in range(draws if len(own) > 1 else 0):
                    chosen = rng.sample(own, rng.choice([size for size in (2, 2, 3) if size <= len(own)]))
                    yield name, base, {key: rng.choice(choices[key]) for key in chosen}


def changed(base: Config, change: Config) -> Config:
    """Returns a config with other values."""
    config = {**base, **change}
    return {key: value for key, value in config.items() if not (isinstance(value, str) and value == REMOVED)}
