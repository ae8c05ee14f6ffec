"""What the keys of GGUF files mean, by architecture: the facts about converters that nothing in a file tells.

A key of a file stands behind the architecture's name, "llama.block_count"; here it is without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..arch.spec import Alibi, Transformer

Get = Callable[[str], Any]
"""From a key to its value, None where the file has none; of a list of equal values to one of them."""
More = Callable[[dict[str, Any], Get, Collection[str]], None]
"""Adds to a config, from the keys and the names of the tensors, what does not follow key by key."""
Tell = Callable[[Transformer], Any]
"""From a description to the value of a key, None where it has nothing of that."""

_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_RMS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
_GROUPED = {"num_key_value_heads": "attention.head_count_kv", "rope_theta": "rope.freq_base"}
_HEAD_DIM = {"head_dim": "attention.key_length"}
_WINDOW = {"sliding_window": "attention.sliding_window"}
_EXPERTS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
_LOCAL_EXPERTS = {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
_GRANITE = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_LAYER_EPS = "attention.layer_norm_epsilon"
_SHARE = "partial_rotary_factor"
_QKV = ("attn_qkv",)
_SHARED_NORM = {"norm": "attn_norm"}  # of parallel branches
_IN_PARALLEL: dict[str, Tell] = {"use_parallel_residual": lambda described: described.stack.kinds[0].parallel}
_ALIBI_BIAS = 8.0  # of all that there are


@dataclass(frozen=True)
class Architecture:
    """A family as GGUF files have it.

    Attributes:
        model_type: The family.
        needed: Keys of the file by the name in config.json.
        optional: Keys that may be absent, likewise.
        fixed: What config.json says that no key does.
        told: Keys of this one by what descriptions say of them, where files are written.
        known: Keys that say what others say, or nothing to a reader.
        ends: What files call its tensors outside the blocks by short name, without ".weight", where no other has them.
        inside: The same in a block, where no other has them or they are called so here alone.
        rotary: Whether it has rotary positions, with scaling by the file's keys.
        partial: What the config calls the share of a head that is rotated, as "rope.dimension_count" says; "" where all
            of it is.
        permuted: Whether rotary pairs of q and k lie side by side in the file.
        fused: Tensors of a block in which several lie, one behind the other, in files that are written.
        also: Other families whose files are called so.
        unheeded: Keys that other programs leave out.
        more: Adds what does not follow key by key, and changes what follows otherwise here.
    """

    model_type: str
    needed: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Tell] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    ends: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)
    rotary: bool = True
    partial: str = ""
    permuted: bool = False
    fused: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    unheeded: tuple[str, ...] = ()
    more: More = lambda _config, _get, _names: None

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of its files, but those that files of every architecture may have."""
        return (*self.needed.values(), *self.optional.values(), *self.told, *self.known)


def _llama(model_type: str, *, eps: dict[str, str] = _RMS, wide: bool = True, **options: Any) -> Architecture:
    """A family whose config has Llama's keys; wide: one that may say how wide a head is."""
    optional = _GROUPED | (_HEAD_DIM if wide else {}) | options.pop("optional", {})
    return Architecture(model_type, _SIZES | eps, optional, **options)


def _mistral(config: dict[str, Any], get: Get, _: Collection[str]) -> None:
    """Files of Mistral and Mixtral are written as Llama's."""
    if "sliding_window" in config:
        config["model_type"] = "mistral"
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
    if get("expert_count"):
        config |= {"model_type": "mixtral", "num_local_experts": get("expert_count")}
        config["num_experts_per_tok"] = get("expert_used_count")


def _ministral3(config: dict[str, Any], get: Get, _: Collection[str]) -> None:
    """Queries grow beyond the context before scaling; of its two magnitudes the first is one."""
    own = {"llama_4_scaling_beta": get("attention.temperature_scale"), "mscale": 1.0}
    config["rope_scaling"] = {
        **config.get("rope_scaling", {}),
        **own,
        "mscale_all_dim": get("rope.scaling.yarn_log_multiplier"),
    }


def _olmo3(config: dict[str, Any], _get: Get, _: Collection[str]) -> None:
    """Files of OLMo 3 are written as those of OLMo 2, with a window."""
    if "sliding_window" in config:
        config["model_type"] = "olmo3"


def _phi3(config: dict[str, Any], _get: Get, _: Collection[str]) -> None:
    """What the context was before scaling stands beside it, too, where a default would win."""
    name = "original_max_position_embeddings"
    if trained := config.get("rope_scaling", {}).get(name):
        config[name] = trained


def _gpt_oss(config: dict[str, Any], _get: Get, _: Collection[str]) -> None:
    """Its bounds between frequencies are no whole numbers."""
    if config["rope_scaling"]["rope_type"] == "yarn":
        config["rope_scaling"]["truncate"] = False


def _growth(described: Transformer) -> float | None:
    scale = next(described.stack.attentions).query_scale
    return None if scale is None else scale.beta


def _parallel(config: dict[str, Any], get: Get, _: Collection[str]) -> None:
    """Without the key, in turn."""
    config["use_parallel_residual"] = bool(get("use_parallel_residual"))


def _gemma2(config: dict[str, Any], get: Get, _: Collection[str]) -> None:
    """The largest model of the family has a scale of its own, which files do not tell."""
    largest = get("block_count") == 46
    config["query_pre_attn_scalar"] = (
        config["hidden_size"] // config["num_attention_heads"] if largest else config.get("head_dim", 256)
    )


def _gemma3(config: dict[str, Any], get: Get, names: Collection[str]) -> None:
    largest = get("block_count") == 62
    _gemma2(config, lambda key: 46 if largest and key == "block_count" else None, names)
    config.setdefault("sliding_window", None)
    config["rope_local_base_freq"] = get("rope.freq_base_swa") or 10000.0


def _alibi_bias(described: Transformer) -> float | None:
    return _ALIBI_BIAS if isinstance(next(described.stack.attentions).positions, Alibi) else None


def _mpt(config: dict[str, Any], get: Get, _: Collection[str]) -> None:
    width, hidden = get("feed_forward_length"), config["d_model"]
    config["expansion_ratio"] = width // hidden if isinstance(width, int) and isinstance(hidden, int) else width
    bias = get("attention.max_alibi_bias")
    attention = {"alibi": bool(bias), "clip_qkv": get("attention.clamp_kqv")}
    config["attn_config"] = attention | ({"alibi_bias_max": bias} if bias else {})


def _falcon(config: dict[str, Any], get: Get, names: Collection[str]) -> None:
    """Norms tell the two blocks apart: one for both branches, or one for each."""
    config["new_decoder_architecture"] = "blk.0.attn_norm_2.weight" in names
    config |= {"multi_query": get("attention.head_count_kv") == 1, "parallel_attn": True, "alibi": False}
    config["bias"] = "blk.0.attn_qkv.bias" in names


def _stablelm(config: dict[str, Any], get: Get, names: Collection[str]) -> None:
    _parallel(config, get, names)
    config["qk_layernorm"] = "blk.0.attn_q_norm.weight" in names
    config["use_qkv_bias"] = "blk.0.attn_q.bias" in names


def _starcoder2(config: dict[str, Any], _: Get, names: Collection[str]) -> None:
    config["use_bias"] = "blk.0.attn_q.bias" in names


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _llama(
        "llama",
        optional=_WINDOW,
        permuted=True,
        fixed={"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"},
        known=("expert_count",),
        also=("mistral", "mixtral"),
        unheeded=("attention.sliding_window",),
        more=_mistral,
    ),
    "mistral3": _llama(
        "ministral3",
        told={"attention.temperature_scale": _growth},
        known=("rope.scaling.yarn_log_multiplier",),
        permuted=True,
        more=_ministral3,
    ),
    "qwen2": _llama("qwen2", wide=False, optional=_WINDOW),
    "qwen3": _llama("qwen3", optional=_WINDOW),
    "qwen3moe": _llama(
        "qwen3_moe",
        optional=_EXPERTS | {"moe_intermediate_size": "expert_feed_forward_length"},
        fixed={"norm_topk_prob": True},
    ),
    "qwen2moe": _llama(
        "qwen2_moe",
        wide=False,
        optional=_EXPERTS
        | {
            "moe_intermediate_size": "expert_feed_forward_length",
            "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        },
    ),
    "gpt-oss": _llama(
        "gpt_oss",
        optional=_WINDOW | _LOCAL_EXPERTS,
        fixed={"rope_scaling": {"rope_type": "default"}},  # which its config has others than by default
        known=("expert_feed_forward_length",),
        inside={"sinks": "attn_sinks", "mlp_norm": "post_attention_norm"},
        more=_gpt_oss,
    ),
    "olmoe": _llama("olmoe", wide=False, optional=_EXPERTS),
    "smollm3": _llama("smollm3", wide=False, permuted=True),
    "gemma": _llama("gemma"),
    "gemma2": _llama(
        "gemma2",
        optional=_WINDOW
        | {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"},
        more=_gemma2,
    ),
    "gemma3": _llama("gemma3_text", optional=_WINDOW, known=("rope.freq_base_swa",), more=_gemma3),
    "phi3": _llama(
        "phi3",
        wide=False,
        optional=_WINDOW,
        known=("rope.scaling.attn_factor",),
        partial=_SHARE,
        fused=("attn_qkv", "ffn_up"),
        more=_phi3,
    ),
    "olmo": _llama(
        "olmo",
        wide=False,
        eps={},
        optional={"clip_qkv": "attention.clamp_kqv"},
        known=(_LAYER_EPS,),
        permuted=True,
    ),
    "olmo2": _llama("olmo2", wide=False, optional=_WINDOW, also=("olmo3",), more=_olmo3),
    "granite": _llama("granite", wide=False, optional=_GRANITE, permuted=True),
    "granitemoe": _llama("granitemoe", wide=False, optional=_GRANITE | _LOCAL_EXPERTS, permuted=True),
    "glm4": _llama("glm4", partial=_SHARE, fused=("ffn_up",)),
    "cohere2": _llama(
        "cohere2",
        eps={"layer_norm_eps": _LAYER_EPS},
        optional=_WINDOW | {"logit_scale": "logit_scale"},
        inside=_SHARED_NORM,
    ),
    "starcoder2": _llama("starcoder2", wide=False, eps={"norm_epsilon": _LAYER_EPS}, more=_starcoder2),
    "stablelm": _llama(
        "stablelm",
        wide=False,
        eps={"layer_norm_eps": _LAYER_EPS},
        told=_IN_PARALLEL,
        partial=_SHARE,
        inside=_SHARED_NORM,
        more=_stablelm,
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "n_embd": "embedding_length",
            "n_inner": "feed_forward_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_positions": "context_length",
            "layer_norm_epsilon": _LAYER_EPS,
        },
        ends={"positions": "position_embd"},
        rotary=False,
        fused=_QKV,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        _SIZES | {"layer_norm_eps": _LAYER_EPS},
        {"rotary_emb_base": "rope.freq_base"},
        told=_IN_PARALLEL,
        partial="rotary_pct",
        fused=_QKV,
        more=_parallel,
    ),
    "bloom": Architecture(
        "bloom",
        {
            "hidden_size": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "seq_length": "context_length",
            "layer_norm_epsilon": _LAYER_EPS,
        },
        known=("feed_forward_length",),
        ends={"embed_norm": "token_embd_norm"},
        rotary=False,
        fused=_QKV,
    ),
    "mpt": Architecture(
        "mpt",
        {
            "d_model": "embedding_length",
            "n_layers": "block_count",
            "n_heads": "attention.head_count",
            "max_seq_len": "context_length",
            "layer_norm_epsilon": _LAYER_EPS,
        },
        told={"attention.max_alibi_bias": _alibi_bias},
        known=("feed_forward_length", "attention.clamp_kqv"),
        rotary=False,
        fused=_QKV,
        more=_mpt,
    ),
    "falcon": Architecture(
        "falcon",
        {
            "hidden_size": "embedding_length",
            "ffn_hidden_size": "feed_forward_length",
            "num_hidden_layers": "block_count",
            "num_attention_heads": "attention.head_count",
            "num_kv_heads": "attention.head_count_kv",
            "max_position_embeddings": "context_length",
            "layer_norm_epsilon": _LAYER_EPS,
        },
        {"rope_theta": "rope.freq_base"},
        inside=_SHARED_NORM | {"attn_norm": "attn_norm_2", "mlp_norm": "attn_norm"},
        fused=_QKV,
        more=_falcon,
    ),
}
