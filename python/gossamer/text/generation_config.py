"""What generation_config.json, and the like keys of GGUF files, say about drawing tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# As generation_config.json calls the sampling options -> as gossamer does.
OPTION_NAMES = {
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "penalty_last_n": "repeat_window",
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "renormalize_logits": "renormalize",
    "bad_words_ids": "bad_words",
}
# Tokens that a decoder begins with, which reads an encoder.
STARTS = ("decoder_start_token_id", "forced_bos_token_id")
# Of what is not done otherwise, what is when sound is transcribed.
_HEEDED_FOR_SPEECH = ("suppress_tokens", "begin_suppress_tokens")
_SPEECH = ("alignment_heads",)  # heads of a speech model whose attention tells when a word is said
_GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
    "general.sampling.penalty_last_n": "penalty_last_n",
}
_LAST_N = 64  # that llama.cpp has where a file says nothing
TOP_K = 50
"""Likeliest tokens that transformers draws from where a model says `do_sample` and no `top_k`."""

# What a model may ask for beside these, and gossamer does not do, with the values that ask for nothing.
_UNHEEDED: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (1,),
    "max_time": (),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "max_length": (20,),  # what transformers has where nothing is said
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "stop_strings": ([], ""),
    "token_healing": (False,),
    "top_h": (),
    "watermarking_config": ({},),
    "dola_layers": (),
    "force_words_ids": ([],),
    "constraints": ([],),
    "xtc_probability": (0.0,),
    "mirostat": (0,),
    "sequence": (),  # of llama.cpp's samplers
}
# What a speech model may ask for beside these, and whoever transcribes has to say instead, with the values that ask for
# what is done anyway.
_UNHEEDED_FOR_SPEECH: dict[str, tuple[Any, ...]] = {
    "language": (),
    "task": ("transcribe",),
    "forced_decoder_ids": ([],),
    "max_initial_timestamp_index": (50,),
    "no_speech_threshold": (0.6,),
    "logprob_threshold": (-1.0,),
    "condition_on_prev_tokens": (True,),
    "num_beams": (1, 5),
    "temperature": (0.0, 1.0),
    "repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "bad_words_ids": ([],),
    "max_new_tokens": (),
}
_GGUF |= {f"general.sampling.{name}": name for name in ("xtc_probability", "mirostat", "sequence")}


def most_new_tokens(generation: Mapping[str, Any]) -> Any:
    """Returns the most tokens that a model lets a text have, whatever stands there; None where it does not say.

    `max_new_tokens` comes first. Without it a decoder that reads an encoder writes up to `max_length`, which counts the
    tokens that it begins with; of other models that counts the prompt, too, and is not heeded.

    Args:
        generation: Content of generation_config.json.
    """
    most, longest = generation.get("max_new_tokens"), generation.get("max_length")
    if most is not None or type(longest) is not int or longest in _UNHEEDED["max_length"]:
        return most
    begun = sum(generation.get(key) is not None for key in STARTS)
    return max(longest - begun, 1) if generation.get(STARTS[0]) is not None else None


def unheeded(generation: Mapping[str, Any], context: int = 0) -> list[str]:
    """Returns what a model asks for and gossamer does not do: keys of generation_config.json, with their values.

    Args:
        generation: Content of generation_config.json.
        context: Of the model: a `max_length` that it ends before asks for nothing.
    """
    asked = [(key, generation.get(key), nothing) for key, nothing in _UNHEEDED.items()]
    longest = generation.get("max_length")
    if most_new_tokens(generation) is not None or (type(longest) is int and longest >= context):
        asked = [one for one in asked if one[0] != "max_length"]
    if generation.get("do_sample", generation.get("temperature") is not None):
        asked.append(("num_beams", generation.get("num_beams"), (1,)))  # beams that are drawn
    if STARTS[0] in generation:
        asked = [one for one in asked if one[0] not in STARTS]
    if generation.get("early_stopping") == "never":
        asked.append(("early_stopping", "never", ()))
    return [f"{key} {value!r:.40}" for key, value, nothing in asked if value is not None and value not in nothing]


def unheeded_for_speech(generation: Mapping[str, Any], context: int = 0) -> list[str]:
    """Returns what a speech model asks for and `transcribe` does not do: keys, with their values.

    Args:
        generation: Content of generation_config.json.
        context: Of the model.
    """
    others = {key: value for key, value in generation.items() if key not in (*_HEEDED_FOR_SPEECH, *STARTS)}
    asked = {key: generation.get(key) for key in _UNHEEDED_FOR_SPEECH}
    if not _forces_language(asked["forced_decoder_ids"]):
        del asked["forced_decoder_ids"]
    return unheeded(others, context) + [
        f"{key} {value!r:.40}"
        for key, value in asked.items()
        if value is not None and value not in _UNHEEDED_FOR_SPEECH[key]
    ]


def _forces_language(pairs: Any) -> bool:
    """Whether a transcript is to begin with a language: of others [1, null] listens, and a lone [1, …] has no times."""
    fair = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    return fair and len(pairs) > 1 and pairs[0][0] == 1 and pairs[0][1] is not None


def sampling_keys(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of generation_config.json is about drawing."""
    keys = ("do_sample", *OPTION_NAMES, *STARTS, *_SPEECH, *_UNHEEDED, *_UNHEEDED_FOR_SPEECH)
    return {key: generation[key] for key in keys if generation.get(key) is not None}


def gguf_sampling(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sampling options among the keys of a GGUF file, as generation_config.json would have them."""
    found = {ours: keys[key] for key, ours in _GGUF.items() if keys.get(key) is not None}
    if "repetition_penalty" in found:
        found.setdefault("penalty_last_n", _LAST_N)
    # The file has them as float32: 0.05 is meant, and not 0.05000000074505806.
    return {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in found.items()}
