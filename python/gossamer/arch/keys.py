"""Keys of config.json that nobody reads: those that change what a model computes are refused, by name.

A key that is on neither list here is refused when its name is one of mathematics and its value asks for something; of
any other that asks for something a note is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import GossamerError
from .fields import words

# Training, generation, bookkeeping: the same logits with and without them.
_HARMLESS = words(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path architectures
    attention_dropout attention_probs_dropout_prob attn_implementation auto_map bad_words_ids begin_suppress_tokens
    bos_token_id attn_pdrop chunk_size_feed_forward classifier_dropout compression_config cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder label2id
    length_penalty license max_length max_sequence_length min_length model_max_length model_type neftune_noise_alpha
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type quantization_config
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef
    sep_token_id sparsity_config suppress_tokens task_specific_params temperature tensor_parallel_size
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    """
)
# True says what is done anyway; False asks for something else.
_DONE = words("is_causal scale_attn_weights use_rope use_rotary")
_MATHEMATICS = re.compile(
    r"scal|multipl|soft_?cap|norm|rope|rotary|alibi|position|window|bias|clip|clamp|expert|moe|router|residual|parallel"
    r"|activation|hidden_act|attn|attention|layer|head|dim|gate|mup|logit|sink|kv|latent|lora|prune|cross|embed|tie"
    r"|encoder|sparse"
)
_LARGEST = 1 << 1000  # whole numbers beyond it are no floats
_FACTOR = re.compile(r"^(?!.*(attn|attention|_log_)).*(scale|scaling|multiplier|factor)$|(^|scaling\.)attn_factor$")


def unread(
    config: dict[str, Any], known: Collection[str], where: str = "", same: Mapping[str, float] | None = None
) -> list[str]:
    """Returns the keys that ask for something, and that neither the family nor this list knows.

    Args:
        config: An object of config.json.
        known: The keys that are read.
        where: Name of that object, where it is not the whole file: then every such key is refused.
        same: Values of keys that only spell out what is done anyway.

    Raises:
        GossamerError: such a key is one of mathematics.
    """
    found = []
    for key, value in config.items():
        if key in known or key in _HARMLESS or _asks_nothing(key, value, (same or {}).get(key)):
            continue
        if where or key in _DONE or _MATHEMATICS.search(key):
            raise GossamerError(f"{where + ': ' if where else ''}{key} is not supported, got {value!r:.80}")
        found.append(key)
    return found


def plainly(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns a config with every key under one name, of a family that has two for some.

    Args:
        config: Content of config.json.
        names: The names that stay, by the others.

    Raises:
        GossamerError: the two names of a key say different things.
    """
    plain = {key: value for key, value in config.items() if key not in names}
    for other, own in names.items():
        value = config.get(other)
        if value is not None and plain.setdefault(own, value) is None:
            plain[own] = value
        if value not in (None, plain.get(own)):
            raise GossamerError(f"{other} {value!r:.80} contradicts {own} {plain[own]!r:.80}")
    return plain


def _asks_nothing(key: str, value: Any, same: float | None) -> bool:
    """Whether a value leaves things as they are: nothing, a factor of one, or what is done anyway."""
    if key == "is_causal":
        return value is True  # null asks for attention to both sides
    if key in _DONE and isinstance(value, bool):
        return value
    if value is None or value is False or value in ("", [], {}):
        return True
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _LARGEST:
        return False
    return math.isclose(value, (1 if _FACTOR.search(key) else 0) if same is None else same, rel_tol=1e-6)
