"""The keys of a GGUF file of the Llama family as the content of a config.json; what is not understood is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..arch import keys as arch_keys
from ..errors import GossamerError

PREFIX = "llama."

# Keys of the file, without the prefix, by the name in config.json; those after the gap may be absent.
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
}
_ROPE = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
_KNOWN = {PREFIX + key for table in (_SIZES, _OPTIONAL, _ROPE) for key in table.values()} | {
    PREFIX + key
    for key in (
        "attention.causal",
        "attention.layer_norm_epsilon",  # of another kind of norm
        "attention.value_length",
        "expert_used_count",
        "rope.dimension_count",
        "rope.scale_linear",
        "rope.scaling.finetuned",
        "rope.scaling.type",
        "tensor_data_layout",
        "vocab_size",  # the embedding has it
    )
}


def read_config(
    path: Path, keys: dict[str, Any], vocab: int, tied: bool, factors: list[float] | None
) -> dict[str, Any]:
    """Builds the content of a config.json.

    Args:
        path: The file, for errors.
        keys: Its keys.
        vocab: Rows of the embedding.
        tied: Whether the embedding is the head.
        factors: Divisors of the rotary frequencies that are stored as a tensor.

    Raises:
        GossamerError: a key is missing, has a bad value, or asks for what there is not.
    """

    def get(key: str) -> Any:
        value = keys.get(PREFIX + key)
        return value[0] if isinstance(value, list) and value and value.count(value[0]) == len(value) else value

    config = {own: get(key) for own, key in _SIZES.items()}
    for own, key in _SIZES.items():
        if config[own] is None:
            raise GossamerError(f"{path}: key {PREFIX}{key} is missing")
    config |= {own: get(key) for own, key in _OPTIONAL.items() if get(key) is not None}
    if config.get("sliding_window") == 0:
        del config["sliding_window"]
    heads = config["num_attention_heads"]
    if not isinstance(heads, int) or heads < 1 or not isinstance(config["hidden_size"], int):
        raise GossamerError(f"{path}: {PREFIX}attention.head_count must be one whole number, got {heads!r:.80}")
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    if not isinstance(head_dim, int) or head_dim < 1:
        raise GossamerError(f"{path}: the width of a head must be a whole number above 0, got {head_dim!r:.80}")
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key) not in (None, head_dim):
            raise GossamerError(f"{path}: {PREFIX}{key} {get(key)} is not the width of a head, {head_dim}")
    if get("expert_count"):
        raise GossamerError(f"{path}: mixtures of experts ({PREFIX}expert_count) are not supported")
    if get("attention.causal") is False:
        raise GossamerError(f"{path}: models that look ahead ({PREFIX}attention.causal) are not supported")
    # Zero switches any other off.
    others = {key: value for key, value in keys.items() if key.startswith(PREFIX) and value != 0}
    arch_keys.unread(others, _KNOWN, str(path), {f"{PREFIX}attention.scale": head_dim**-0.5})
    scaling = _rope_scaling(path, get, factors, config["max_position_embeddings"])
    tokens = {name: keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config,
        **({"rope_scaling": scaling} if scaling else {}),
        "hidden_act": "silu",
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        **{f"{name}_token_id": token for name, token in tokens.items() if token is not None},
        "torch_dtype": "float32",
    }


def _rope_scaling(path: Path, get: Any, factors: list[float] | None, context: int) -> dict[str, Any]:
    """The scaling of rotary frequencies. A factor without a type is linear, and once it had another name."""
    factor = get("rope.scaling.factor") or get("rope.scale_linear") or 1.0
    kind = get("rope.scaling.type") or "linear"
    if factors is not None:
        if kind not in ("none", "linear"):
            raise GossamerError(f"{path}: rope_freqs.weight beside {PREFIX}rope.scaling.type {kind!r:.80}")
        # Under this type config.json holds such divisors as they are; equal lists mean the same for every length.
        divisors = [value * (factor if kind == "linear" else 1.0) for value in factors]
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "factor": 1.0,
            "original_max_position_embeddings": context,
        }
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    values = {own: get(key) for own, key in _ROPE.items() if get(key)}
    return {"rope_type": kind, **values, "factor": factor}
